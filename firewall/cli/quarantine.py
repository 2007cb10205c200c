"""`firewall quarantine`: people review the inputs that were refused or flagged."""

from __future__ import annotations

import getpass
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from firewall.cli.shared import Json, Trust, open_checked
from firewall.errors import ConfigError
from firewall.quarantine.opening import DATABASE_URL, IMAGES_URL, open_resolved

if TYPE_CHECKING:
    from firewall.quarantine.store import Record

quarantine_app = typer.Typer(
    help="Review refused and flagged inputs: list, show, label, export.", no_args_is_help=True
)
Database = Annotated[
    str,
    typer.Argument(
        help="The database, as for serve --quarantine: a file, sqlite:/// or "
        "postgresql+psycopg://. Give a URL with a password as @FILE, which reads it from a file, "
        f"or as @, which reads {DATABASE_URL}."
    ),
]
Images = Annotated[
    str | None,
    typer.Option(
        "--images",
        help="Folder or fsspec URL of the images (default: beside the database file); "
        f"@FILE and @ as for the database, with {IMAGES_URL}.",
    ),
]
Number = Annotated[int, typer.Argument(help="Number of the row, as list shows it.")]


@quarantine_app.command("list")
def list_rows(
    database: Database,
    images: Images = None,
    client: Annotated[
        str | None, typer.Option(help="Only rows of the client with this pseudonym.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Only rows of this model.")] = None,
    reviewed: Annotated[
        bool | None,
        typer.Option("--reviewed/--unreviewed", help="Only labelled or only unlabelled rows."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Largest number of rows.")] = 50,
    as_json: Json = False,
) -> None:
    """List rows, the newest first."""
    store = open_resolved(database, images, access="read")
    for record in store.find(client=client, model=model, reviewed=reviewed, limit=limit):
        if as_json:
            print(json.dumps(_plain(record), allow_nan=False))
            continue
        label = "" if record.label is None else f"  {record.label or 'none of the classes'}"
        p_value = "" if record.p_value is None else f" p {record.p_value:.4f}"
        print(
            f"{record.id:8}  {record.created:%Y-%m-%d %H:%M:%S}  {record.client}  {record.model} "
            f"{record.version}  {record.verdict}{p_value}  {', '.join(record.reasons)}{label}"
        )


@quarantine_app.command()
def show(
    database: Database,
    number: Number,
    out: Annotated[
        Path | None, typer.Option(help="PNG file for the image (default: the row alone).")
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(
            help="With --out: the bundle that refused the row, or one with the same input."
        ),
    ] = None,
    images: Images = None,
    trust: Trust = None,
) -> None:
    """Print a row as JSON, and write its image."""
    from firewall.quarantine.review import write_image

    if (out is None) is not (bundle is None):
        raise ConfigError("--out and --bundle belong together; one is missing")
    store = open_resolved(database, images, access="read")
    record = store.get(number)
    if out is None:
        print(json.dumps(_plain(record), indent=1, allow_nan=False))
        return
    spec = open_checked(bundle, trust).manifest.input
    wire = store.image(record)
    if wire.shape != spec.shape:
        raise ConfigError(
            f"--bundle: takes rows of {list(spec.shape)}; row {number} is {list(wire.shape)}"
        )
    write_image(wire, spec, out)
    print(json.dumps(_plain(record), indent=1, allow_nan=False))


@quarantine_app.command()
def label(
    database: Database,
    number: Number,
    seen: Annotated[str, typer.Argument(help="The class that you see; '' is none of the classes.")],
    bundle: Annotated[Path, typer.Option(help="Bundle of the row's model, which has the classes.")],
    images: Images = None,
    reviewer: Annotated[
        str | None, typer.Option(help="Name of the reviewer (default: the user).")
    ] = None,
    trust: Trust = None,
) -> None:
    """Label a row with the class that a person sees."""
    from difflib import get_close_matches

    opened = open_checked(bundle, trust)
    store = open_resolved(database, images)
    record = store.get(number)
    if record.model != opened.manifest.name:
        raise ConfigError(
            f"--bundle: holds {opened.manifest.name!r}; row {number} is of {record.model!r}"
        )
    if seen and seen not in opened.labels:
        near = get_close_matches(seen, opened.labels, 3)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ConfigError(f"label: {seen!r} is none of the {len(opened.labels)} classes{hint}")
    store.label(number, seen, reviewer or _user())
    print(f"{number}: {seen or 'none of the classes'}")


@quarantine_app.command()
def export(
    database: Database,
    out: Annotated[
        Path, typer.Option(help="New folder to write, for [data] reviewed of a recipe.")
    ],
    bundle: Annotated[Path, typer.Option(help="Bundle of the model whose rows are exported.")],
    images: Images = None,
    trust: Trust = None,
) -> None:
    """Write the labelled rows of a model as training data."""
    from firewall.quarantine.review import export as exported

    manifest = open_checked(bundle, trust).manifest
    store = open_resolved(database, images, access="read")
    count = exported(store, manifest.input, manifest.name, out)
    print(f"{out}: {count} images")


@quarantine_app.command()
def forget(
    database: Database,
    client: Annotated[
        str, typer.Argument(help="Pseudonym of the client; with --key its name or address.")
    ],
    images: Images = None,
    key: Annotated[
        Path | None, typer.Option(help="File with the key of pseudonyms (serve --quarantine-key).")
    ] = None,
) -> None:
    """Remove every row and image of a client."""
    from firewall.quarantine.entry import pseudonym
    from firewall.quarantine.key import pseudonym_key

    if key is not None and not key.exists():
        raise ConfigError(f"--key: {key} does not exist")
    name = client if key is None else pseudonym(client, pseudonym_key(key))
    print(f"{name}: {open_resolved(database, images).forget(name)} rows removed")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A user id without an entry, as in many containers.
        raise ConfigError("--reviewer: missing, and this user has no name") from None


def _plain(record: Record) -> dict[str, object]:
    body = asdict(record)
    for key in ("created", "reviewed"):
        body[key] = None if body[key] is None else body[key].isoformat(timespec="seconds")
    return body
