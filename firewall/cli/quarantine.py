"""`firewall quarantine`: what was refused, looked at by people."""

from __future__ import annotations

import getpass
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from firewall.cli.shared import Json, Trust, open_checked
from firewall.errors import ConfigError

if TYPE_CHECKING:
    from firewall.quarantine.store import Record, Store

quarantine_app = typer.Typer(
    help="Refused and flagged inputs: look, label, export.", no_args_is_help=True
)
Database = Annotated[
    str, typer.Argument(help="As serve has it: a file, or sqlite:/// or postgresql+psycopg://.")
]
Images = Annotated[
    str | None, typer.Option("--images", help="Folder or fsspec URL; beside the file without.")
]
Number = Annotated[int, typer.Argument(help="The row, as list shows it.")]


@quarantine_app.command("list")
def list_rows(
    database: Database,
    images: Images = None,
    client: Annotated[str | None, typer.Option(help="A client's pseudonym.")] = None,
    model: Annotated[str | None, typer.Option(help="Name of a model.")] = None,
    reviewed: Annotated[
        bool | None, typer.Option("--reviewed/--unreviewed", help="Labelled rows; both without.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Rows, the newest first.")] = 50,
    as_json: Json = False,
) -> None:
    """List rows, the newest first."""
    store = open_store(database, images)
    for one in store.find(client=client, model=model, reviewed=reviewed, limit=limit):
        if as_json:
            print(json.dumps(_plain(one)))
            continue
        label = "" if one.label is None else f"  {one.label or 'none of the classes'}"
        p_value = "" if one.p_value is None else f" p {one.p_value:.4f}"
        print(
            f"{one.id:8}  {one.created:%Y-%m-%d %H:%M:%S}  {one.client}  {one.model} "
            f"{one.version}  {one.verdict}{p_value}  {', '.join(one.reasons)}{label}"
        )


@quarantine_app.command()
def show(
    database: Database,
    number: Number,
    out: Annotated[Path, typer.Option(help="Where to write the image (.png).")],
    bundle: Annotated[Path, typer.Option(help="The bundle that refused it, or one like it.")],
    images: Images = None,
    trust: Trust = None,
) -> None:
    """Write a row's image, and print what is known of it."""
    from firewall.quarantine.review import write_image

    store = open_store(database, images)
    found = store.get(number)
    spec = open_checked(bundle, trust).manifest.input
    wire = store.image(found)
    if wire.shape != spec.shape:
        raise ConfigError(
            f"--bundle: takes rows of {list(spec.shape)}; row {number} is {list(wire.shape)}"
        )
    write_image(wire, spec, out)
    print(json.dumps(_plain(found), indent=1))


@quarantine_app.command()
def label(
    database: Database,
    number: Number,
    seen: Annotated[str, typer.Argument(help="The class that a person sees; '' is none of them.")],
    images: Images = None,
    reviewer: Annotated[str | None, typer.Option(help="Who says so; the user without.")] = None,
) -> None:
    """Say what is to be seen in a row."""
    open_store(database, images).label(number, seen, reviewer or getpass.getuser())
    print(f"{number}: {seen or 'none of the classes'}")


@quarantine_app.command()
def export(
    database: Database,
    out: Annotated[Path, typer.Option(help="A new folder: [data] reviewed of a recipe.")],
    bundle: Annotated[Path, typer.Option(help="The bundle whose rows are exported.")],
    images: Images = None,
    trust: Trust = None,
) -> None:
    """Write the labelled rows of a model as training data."""
    from firewall.quarantine.review import export as exported

    manifest = open_checked(bundle, trust).manifest
    store = open_store(database, images)
    count = exported(store, manifest.input, manifest.name, out)
    print(f"{out}: {count} images")


@quarantine_app.command()
def forget(
    database: Database,
    client: Annotated[str, typer.Argument(help="A client's pseudonym, or with --key its name.")],
    images: Images = None,
    key: Annotated[
        Path | None, typer.Option(help="The key of pseudonyms; CLIENT is then a name or address.")
    ] = None,
) -> None:
    """Remove every row and image of a client."""
    from firewall.quarantine.entry import pseudonym
    from firewall.quarantine.key import pseudonym_key

    if key is not None and not key.exists():
        raise ConfigError(f"--key: {key} does not exist")
    name = client if key is None else pseudonym(client, pseudonym_key(key))
    print(f"{name}: {open_store(database, images).forget(name)} rows removed")


def open_store(database: str, images: str | None) -> Store:
    """A quarantine by what people write: a file is SQLite, and images lie beside it."""
    from firewall.quarantine.store import Store

    url = database if "://" in database else f"sqlite:///{Path(database).absolute()}"
    if images is None:
        if not url.startswith("sqlite:///"):
            raise ConfigError("--images: name a folder or URL for the images of this database")
        images = url.removeprefix("sqlite:///") + ".images"
    return Store(url, images)


def _plain(one: Record) -> dict[str, object]:
    body = asdict(one)
    for key in ("created", "reviewed"):
        body[key] = None if body[key] is None else body[key].isoformat(timespec="seconds")
    return body
