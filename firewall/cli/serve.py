"""`firewall serve`. Its flags are the server's settings: see `firewall.serve.settings`."""

from __future__ import annotations

import inspect
import logging
import os
import shutil
import sys
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from firewall.cli.shared import default_bundle_in_a_process

#: Of the default bundle.
DEFAULT_POLICY = Path(__file__).parents[1] / "core" / "policy.toml"


def serve(**flags: Any) -> None:
    """Serve bundles over gRPC and REST until stopped.

    Every flag can also be set in firewall.toml or as an environment variable FIREWALL_<NAME>; flags
    win. SIGHUP reads policy and bundles again.
    """
    config, number, folder = (flags.pop(name) for name in ("config", "worker", "run_folder"))
    given = {name: value for name, value in flags.items() if value is not None}
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s"
    )
    from firewall.serve.process.desired_state import RunFolder
    from firewall.serve.settings import Settings

    settings = Settings.load(given, config)
    bundles = list(settings.bundles)
    if not bundles:
        bundles = [default_bundle_in_a_process()]
        if settings.policy is None:
            settings = settings.model_copy(update={"policy": DEFAULT_POLICY})
    if number is not None and folder is not None:
        shared = RunFolder(folder)
        _share_metrics(shared)
        from firewall.serve.application import WorkerPlace, run

        run(settings, bundles, WorkerPlace(number, shared))
    elif settings.workers > 1:
        shared = RunFolder.create()
        _share_metrics(shared)
        from firewall.serve.process.run import supervise

        try:
            supervise(settings, bundles, sys.argv[1:], shared)
        finally:
            shutil.rmtree(shared.path, ignore_errors=True)
    else:
        from firewall.serve.application import run

        run(settings, bundles)


def _share_metrics(folder: Any) -> None:
    """Have prometheus_client write where all workers do; it looks when it is imported."""
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder.metrics)


def _signature() -> inspect.Signature:
    """One parameter for each setting, as Typer reads them."""
    from firewall.serve.settings import fields

    parameters = []
    for name, group, field in fields():
        if name == "bundles":
            parameter: Any = typer.Argument(help=field.description, show_default=False)
        else:
            flag = f"--{name.replace('_', '-')}"
            parameter = typer.Option(
                f"{flag}/--no-{flag[2:]}" if field.annotation is bool else flag,
                help=f"{field.description}{_shown(field.default)}",
                show_default=False,
                rich_help_panel=group,
            )
        parameters.append(_parameter(name, _flag_type(field.annotation), parameter))
    parameters += [
        _parameter(
            "config",
            Path,
            typer.Option("--config", help="Settings file; ./firewall.toml when it exists."),
        ),
        _parameter("worker", int, typer.Option("--worker", hidden=True)),
        _parameter("run_folder", Path, typer.Option("--run-folder", hidden=True)),
    ]
    return inspect.Signature(parameters)


def _parameter(name: str, kind: Any, option: Any) -> inspect.Parameter:
    # None is "not given": the setting then comes from the file, a variable, or its default.
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, option],
    )


def _flag_type(annotation: Any) -> Any:
    """What Typer parses: the settings object checks the value, and its errors name the flag."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        [annotation] = [part for part in typing.get_args(annotation) if part is not type(None)]
    while typing.get_origin(annotation) is Annotated:
        annotation = typing.get_args(annotation)[0]
    if typing.get_origin(annotation) is Literal:
        return str
    if typing.get_origin(annotation) is tuple:
        return list[typing.get_args(annotation)[0]]  # type: ignore[misc]
    return annotation


def _shown(default: Any) -> str:
    """The default as help shows it; nothing where a setting is simply not set."""
    if default in (None, ()) or default is False:
        return ""
    return f" [default: {default}]"


signature = _signature()
serve.__signature__ = signature  # type: ignore[attr-defined]
serve.__annotations__ = {name: one.annotation for name, one in signature.parameters.items()}
