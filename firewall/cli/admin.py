"""`firewall admin` changes what a running firewall serves; `firewall token` names a client."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from firewall.cli.shared import Authorities, Certificate, Json, Key, read_tls
from firewall.errors import ConfigError

if TYPE_CHECKING:
    from firewall.client.admin import AdminClient

admin_app = typer.Typer(help="Change what a running firewall serves.", no_args_is_help=True)
review_app = typer.Typer(
    help="Refused and flagged inputs of a running firewall.", no_args_is_help=True
)
admin_app.add_typer(review_app, name="quarantine")

Address = Annotated[str, typer.Option(help="host:port of the admin service.")]
Model = Annotated[str, typer.Option(help="Name; empty is the only one served.")]
Number = Annotated[int, typer.Argument(help="The row, as list shows it.")]
_HERE = "localhost:8083"


@admin_app.callback()
def connect(
    context: typer.Context,
    address: Address = _HERE,
    authorities: Authorities = None,
    certificate: Certificate = None,
    key: Key = None,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds.")] = 300.0,
) -> None:
    """Change what a running firewall serves; every change is in its audit log."""

    def client() -> AdminClient:
        from firewall.client.admin import AdminClient

        return AdminClient(address, tls=read_tls(authorities, certificate, key), timeout=timeout)

    context.obj = client


@admin_app.command()
def status(context: typer.Context, as_json: Json = False) -> None:
    """What is live under every name."""
    with context.obj() as client:
        for model in client.status():
            _print(model, as_json)


@admin_app.command("reload")
def reload_bundle(
    context: typer.Context,
    path: Annotated[
        Path | None, typer.Argument(help="On the server's machine; where it was opened without.")
    ] = None,
    model: Model = "",
    as_json: Json = False,
) -> None:
    """Serve the bundle that lies there now."""
    place = "" if path is None else str(path)
    _ask(context, lambda client: client.reload(model, place), as_json)


@admin_app.command()
def rollback(context: typer.Context, model: Model = "", as_json: Json = False) -> None:
    """Undo the last change of bundle or policy; once more does it again."""
    _ask(context, lambda client: client.rollback(model), as_json)


@admin_app.command()
def policy(
    context: typer.Context,
    file: Annotated[
        Path | None, typer.Argument(help="TOML, here; the server's own settings again without.")
    ] = None,
    model: Model = "",
    as_json: Json = False,
) -> None:
    """Decide by another policy."""
    from firewall.screening.policy import Policy

    text = ""
    if file is not None:
        Policy.load(file)  # what is wrong with it is said before anyone is asked
        # A file of comments alone is a policy of defaults, and not a missing one.
        text = file.read_text() or "# defaults\n"
    _ask(context, lambda client: client.set_policy(text, model), as_json)


@admin_app.command()
def shadow(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(help="The candidate's bundle, on the server's machine.")],
    percent: Annotated[float, typer.Option(help="Of requests.")] = 10.0,
    model: Model = "",
    as_json: Json = False,
) -> None:
    """Let a candidate see a share of the traffic, and answer nobody."""
    _ask(context, lambda client: client.start_shadow(str(path), percent, model), as_json)


@admin_app.command()
def promote(context: typer.Context, model: Model = "", as_json: Json = False) -> None:
    """Serve the candidate."""
    _ask(context, lambda client: client.promote_shadow(model), as_json)


@admin_app.command()
def drop(context: typer.Context, model: Model = "", as_json: Json = False) -> None:
    """Compare with the candidate no more."""
    _ask(context, lambda client: client.drop_shadow(model), as_json)


@review_app.command("list")
def list_rows(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="Name; empty is all.")] = "",
    client: Annotated[str, typer.Option(help="A client's pseudonym; empty is all.")] = "",
    reviewed: Annotated[
        bool | None, typer.Option("--reviewed/--unreviewed", help="Labelled rows; both without.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Rows, the newest first.")] = 50,
    before: Annotated[int, typer.Option(min=0, help="Only rows with a smaller number.")] = 0,
    as_json: Json = False,
) -> None:
    """List rows, the newest first."""
    with context.obj() as asked:
        for row in asked.quarantine(
            model=model, client=client, reviewed=reviewed, limit=limit, before=before
        ):
            _print_row(row, as_json)


@review_app.command()
def show(
    context: typer.Context,
    number: Number,
    out: Annotated[Path, typer.Option(help="Where to write the image (.png).")],
    as_json: Json = False,
) -> None:
    """Write a row's image, and print what is known of it."""
    with context.obj() as client:
        row = client.quarantined(number)
    if not row.png:
        raise ConfigError(f"{number}: no model {row.model!r} that takes such rows is served")
    try:
        out.write_bytes(row.png)
    except OSError as error:
        raise ConfigError(f"--out: {out} cannot be written: {error.strerror}") from error
    _print_row(row, as_json)


@review_app.command()
def label(
    context: typer.Context,
    number: Number,
    seen: Annotated[str, typer.Argument(help="The class that a person sees; '' is none of them.")],
    as_json: Json = False,
) -> None:
    """Say what is to be seen in a row."""
    with context.obj() as client:
        _print_row(client.label(number, seen), as_json)


@review_app.command()
def forget(
    context: typer.Context,
    client: Annotated[str, typer.Argument(help="A client's pseudonym.")],
) -> None:
    """Remove every row and image of a client."""
    with context.obj() as asked:
        typer.echo(f"{client}: {asked.forget(client)} rows removed")


def token(
    name: Annotated[str, typer.Argument(help="Of the client.")],
) -> None:
    """Draw a token for a client: the secret on standard error, its line for --tokens on output."""
    from firewall.serve.identity import Tokens

    secret, line = Tokens.entry(name)
    typer.echo(f"token of {name}, shown once: {secret}", err=True)
    typer.echo(line)


def _ask(context: typer.Context, ask: Callable[[AdminClient], Any], as_json: bool) -> None:
    with context.obj() as client:
        _print(ask(client), as_json)


def _print_row(row: Any, as_json: bool) -> None:
    from google.protobuf.json_format import MessageToDict

    if as_json:
        body = MessageToDict(row, preserving_proto_field_name=True)
        body.pop("png", None)
        typer.echo(json.dumps(body))
        return
    seen = f"  {row.label or 'none of the classes'}" if row.HasField("label") else ""
    p_value = f" p {row.p_value:.4f}" if row.HasField("p_value") else ""
    typer.echo(
        f"{row.id:8}  {row.created[:19].replace('T', ' ')}  {row.client}  {row.model} "
        f"{row.version}  {row.verdict}{p_value}  {', '.join(row.reasons)}{seen}"
    )


def _print(status: Any, as_json: bool) -> None:
    from google.protobuf.json_format import MessageToDict

    body = MessageToDict(
        status, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    if as_json:
        typer.echo(json.dumps(body))
        return
    state = "ready" if status.ready else "not ready"
    typer.echo(f"{status.model} {status.version}: {state}, {status.mode}")
    typer.echo(f"  bundle {status.bundle[:12]} from {status.path}")
    typer.echo(f"  policy {status.policy}, false positives {status.false_positive_rate:g}")
    if status.HasField("before"):
        before = status.before
        typer.echo(f"  before: {before.version}, bundle {before.bundle[:12]}, {before.policy}")
    if status.HasField("shadow"):
        one = status.shadow
        typer.echo(
            f"  shadow: {one.version}, bundle {one.bundle[:12]}, {one.percent:g} % of requests; of "
            f"{one.rows} rows {one.verdicts_differ} other verdicts, {one.labels_differ} other "
            f"classes, {one.would_refuse} answered ones refused; {one.dropped} requests dropped, "
            f"{one.failed} failed"
        )
