"""`firewall admin` changes what a running firewall serves; `firewall token` names a client."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from firewall.cli.shared import Authorities, Certificate, Json, Key, read_tls, read_token
from firewall.errors import ConfigError

if TYPE_CHECKING:
    from firewall.client.admin import AdminClient

admin_app = typer.Typer(help="Change what a running firewall serves.", no_args_is_help=True)
review_app = typer.Typer(
    help="Review refused and flagged inputs of a running firewall.", no_args_is_help=True
)
admin_app.add_typer(review_app, name="quarantine")

Address = Annotated[
    str | None,
    typer.Option(
        help="Of the admin service: unix:/path/to/socket, or host:port. The socket of the server "
        "on gRPC port 8081 when not given.",
        show_default=False,
    ),
]
Model = Annotated[str, typer.Option(help="Name of the model (default: the only model served).")]
Number = Annotated[int, typer.Argument(help="Number of the row, as list shows it.")]
#: gRPC port of the server whose socket is asked when no address is given.
_GRPC_PORT = 8081


#: Flags of `connect`, each with a value.
_CONNECTION = ("--address", "--ca", "--cert", "--key", "--token-file", "--timeout")


def connection_first(arguments: list[str]) -> list[str]:
    """Move the flags of `firewall admin` that say whom to ask in front of its command.

    They belong to all of its commands, and people write them behind the command as often.

    Args:
        arguments: of the program; others than of `admin` are returned as they are.

    """
    if arguments[:1] != ["admin"]:
        return arguments
    moved: list[str] = []
    rest: list[str] = []
    waiting = iter(arguments[1:])
    for one in waiting:
        name, equals, _ = one.partition("=")
        if name not in _CONNECTION:
            rest.append(one)
            continue
        value = [] if equals else [next(waiting, "")]
        moved += [one, *value]
    return ["admin", *moved, *rest]


@admin_app.callback()
def connect(
    context: typer.Context,
    address: Address = None,
    authorities: Authorities = None,
    certificate: Certificate = None,
    key: Key = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--token-file", help="File with the operators' bearer token (serve --admin-token-file)."
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=0.001, help="Seconds to wait for an answer.")
    ] = 300.0,
) -> None:
    """Change what a running firewall serves. Every change is in the server's audit log."""

    def client() -> AdminClient:
        from firewall.client.admin import AdminClient
        from firewall.serve.admin.address import default_socket

        return AdminClient(
            address or f"unix:{default_socket(_GRPC_PORT)}",
            tls=read_tls(authorities, certificate, key),
            token="" if token_file is None else read_token(token_file),
            timeout=timeout,
        )

    context.obj = client


@admin_app.command()
def status(context: typer.Context, as_json: Json = False) -> None:
    """Show what is served under every model name."""
    with context.obj() as client:
        for model in client.status():
            _print(model, as_json)


@admin_app.command("reload")
def reload_bundle(
    context: typer.Context,
    path: Annotated[
        Path | None,
        typer.Argument(
            help="Folder of the bundle on the server's machine (default: where the live "
            "bundle was opened)."
        ),
    ] = None,
    allow_downgrade: Annotated[
        bool,
        typer.Option("--allow-downgrade", help="Accept an older version than the live bundle."),
    ] = False,
    model: Model = "",
    as_json: Json = False,
) -> None:
    """Load a bundle and serve it in place of the live one."""
    place = "" if path is None else str(path)
    _ask(
        context,
        lambda client: client.reload(model, place, allow_downgrade=allow_downgrade),
        as_json,
    )


@admin_app.command()
def rollback(context: typer.Context, model: Model = "", as_json: Json = False) -> None:
    """Undo the last change of bundle or policy; a second rollback redoes it."""
    _ask(context, lambda client: client.rollback(model), as_json)


@admin_app.command()
def policy(
    context: typer.Context,
    file: Annotated[
        Path | None,
        typer.Argument(
            help="Policy file (TOML) on this machine (default: read the server's own "
            "policy file and flags again)."
        ),
    ] = None,
    model: Model = "",
    as_json: Json = False,
) -> None:
    """Replace the policy."""
    from firewall.documents import read_text
    from firewall.screening.policy import Policy

    text = ""
    if file is not None:
        Policy.load(file)  # what is wrong with it is said before anyone is asked
        # A file of comments alone is a policy of defaults, and not a missing one.
        text = read_text(file, "policy") or "# defaults\n"
    _ask(context, lambda client: client.set_policy(text, model), as_json)


@admin_app.command()
def shadow(
    context: typer.Context,
    path: Annotated[
        Path, typer.Argument(help="Folder of the candidate's bundle on the server's machine.")
    ],
    percent: Annotated[
        float, typer.Option(help="Percent of requests that the candidate sees.")
    ] = 10.0,
    model: Model = "",
    as_json: Json = False,
) -> None:
    """Run a candidate bundle on a share of the traffic, without answering with it."""
    _ask(context, lambda client: client.start_shadow(str(path), percent, model), as_json)


@admin_app.command()
def promote(context: typer.Context, model: Model = "", as_json: Json = False) -> None:
    """Serve the candidate in place of the live bundle."""
    _ask(context, lambda client: client.promote_shadow(model), as_json)


@admin_app.command()
def drop(context: typer.Context, model: Model = "", as_json: Json = False) -> None:
    """Stop the comparison with the candidate and unload it."""
    _ask(context, lambda client: client.drop_shadow(model), as_json)


@review_app.command("list")
def list_rows(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="Only rows of this model (default: all models).")] = "",
    client: Annotated[
        str,
        typer.Option(help="Only rows of the client with this pseudonym (default: all clients)."),
    ] = "",
    reviewed: Annotated[
        bool | None,
        typer.Option(
            "--reviewed/--unreviewed", help="Only labelled or only unlabelled rows (default: both)."
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Largest number of rows.")] = 50,
    before: Annotated[
        int, typer.Option(min=0, help="Only rows with a number below this one (0 = all).")
    ] = 0,
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
    out: Annotated[Path, typer.Option(help="PNG file to write.")],
    as_json: Json = False,
) -> None:
    """Write the image of a row, and print the row."""
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
    seen: Annotated[str, typer.Argument(help="The class that you see; '' is none of the classes.")],
    as_json: Json = False,
) -> None:
    """Label a row with the class that a person sees."""
    with context.obj() as client:
        _print_row(client.label(number, seen), as_json)


@review_app.command()
def forget(
    context: typer.Context,
    client: Annotated[str, typer.Argument(help="Pseudonym of the client.")],
) -> None:
    """Remove every row and image of a client."""
    with context.obj() as asked:
        typer.echo(f"{client}: {asked.forget(client)} rows removed")


def token(
    name: Annotated[str, typer.Argument(help="Name of the client.")],
) -> None:
    """Create a token for a client.

    Prints the secret to standard error, and its line for the file of --tokens to standard output.
    """
    from firewall.serve.auth import Tokens

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
        typer.echo(json.dumps(body, allow_nan=False))
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
        typer.echo(json.dumps(body, allow_nan=False))
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
