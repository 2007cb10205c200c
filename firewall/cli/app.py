"""Commands. A composition root: it puts parts together and prints; it decides nothing."""

from __future__ import annotations

import io
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from firewall import __version__
from firewall.cli.admin import admin_app, connection_first, token
from firewall.cli.attack import attack
from firewall.cli.calibrate import calibrate
from firewall.cli.calibrate_monitor import calibrate_monitor
from firewall.cli.evaluate import evaluate
from firewall.cli.gan import gan_app
from firewall.cli.guard import guard
from firewall.cli.quarantine import quarantine_app
from firewall.cli.serve import serve
from firewall.cli.shared import (
    Authorities,
    Certificate,
    Json,
    Key,
    PolicyFile,
    Trust,
    default_bundle,
    open_checked,
    read_tls,
    read_token,
)
from firewall.cli.system_errors import database_error, os_error
from firewall.cli.train import train
from firewall.cli.upstream import (
    UpstreamCa,
    UpstreamTokenFile,
    UpstreamUrl,
    opened_upstream,
)
from firewall.errors import ConfigError, FirewallError

if TYPE_CHECKING:
    from firewall.bundle.store import Bundle
    from firewall.demo.story import Story
    from firewall.screening.live import LiveGuard

app = typer.Typer(
    name="firewall",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
bundle_app = typer.Typer(help="Show and check bundles.", no_args_is_help=True)
app.add_typer(bundle_app, name="bundle")
app.add_typer(gan_app, name="gan")
app.add_typer(quarantine_app, name="quarantine")
app.add_typer(admin_app, name="admin")


def main() -> None:
    """Run a command. A `FirewallError` ends it with one line on standard error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A name that the terminal's encoding lacks, or that is no text at all, is written by
            # its number instead of ending the program.
            stream.reconfigure(errors="backslashreplace")
    try:
        app(args=connection_first(sys.argv[1:]))
    except FirewallError as error:
        print(f"firewall: {error}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, ConfigError) else 1) from None
    except BrokenPipeError:
        # Whoever read our output has seen enough.
        sys.stderr.close()
        raise SystemExit(141) from None
    except OSError as error:
        print(f"firewall: {os_error(error)}", file=sys.stderr)
        raise SystemExit(1) from None
    except Exception as error:
        text = database_error(error)
        if text is None:
            raise
        print(f"firewall: {text}", file=sys.stderr)
        raise SystemExit(1) from None


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"firewall {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    """A robustness firewall in front of an image classifier."""


@app.command()
def demo(
    as_json: Json = False,
    picture: Annotated[Path, typer.Option(help="File for the picture of the demo.")] = Path(
        "firewall-demo.png"
    ),
) -> None:
    """Show the firewall at work: accept a cat, forge it into an iguana, refuse the forgery."""
    start = time.monotonic()

    def progress(step: str) -> None:
        print(f"[{time.monotonic() - start:5.1f} s] {step}", file=sys.stderr, flush=True)

    path = default_bundle(progress)
    from firewall.demo.story import tell

    story = tell(path, picture, progress)
    # Building the bundle is part of what a newcomer waits for.
    story = replace(story, seconds=time.monotonic() - start)
    if as_json:
        print(json.dumps(story.to_json(), allow_nan=False))
    else:
        _print_story(story)
    if not story.as_expected:
        raise typer.Exit(1)


@app.command()
def predict(
    images: Annotated[list[Path], typer.Argument(help="Images: JPEG, PNG, WebP or .npy files.")],
    address: Annotated[
        str, typer.Option(help="Address of the firewall's gRPC port, host:port.")
    ] = "localhost:8081",
    model: Annotated[
        str, typer.Option(help="Name of the model (default: the only model served).")
    ] = "",
    top_k: Annotated[
        int,
        typer.Option(min=0, help="Labels for each image (0: five, or all where there are fewer)."),
    ] = 0,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for an answer.")] = 30.0,
    authorities: Authorities = None,
    certificate: Certificate = None,
    key: Key = None,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", help="File with the bearer token of this client.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Classify images with a running firewall. Exits with 3 if an image was refused."""
    import numpy as np

    from firewall.client import Client
    from firewall.screening.verdict import Verdict

    found: list[tuple[str, Any]] = []
    tls = read_tls(authorities, certificate, key)
    secret = "" if token_file is None else read_token(token_file)
    with Client(address, model=model, timeout=timeout, tls=tls, token=secret) as client:
        for image in images:
            if image.suffix == ".npy":
                try:
                    batch = np.load(image, allow_pickle=False)
                except (OSError, ValueError, EOFError) as error:
                    raise ConfigError(f"{image}: not a .npy file that can be read") from error
                answers = client.predict(batch, top_k=top_k)
            else:
                answers = client.predict([image], top_k=top_k)
            found += [
                (str(image) if len(answers) == 1 else f"{image}[{row}]", one)
                for row, one in enumerate(answers)
            ]
    for path, one in found:
        if as_json:
            print(
                json.dumps(
                    {
                        "path": path,
                        "verdict": one.verdict.value,
                        "reasons": list(one.reasons),
                        "labels": [vars(label) for label in one.labels],
                        "p_value": one.p_value,
                        "statistics": dict(one.statistics),
                    },
                    allow_nan=False,
                )
            )
            continue
        reasons = f" ({', '.join(one.reasons)})" if one.reasons else ""
        print(f"{path}: {one.verdict.value}{reasons}")
        for label in one.labels:
            print(f"  {100 * label.probability:5.1f} %  {label.name}")
    if any(one.verdict is Verdict.REJECT for _, one in found):
        raise typer.Exit(3)


@app.command()
def screen(
    paths: Annotated[
        list[Path], typer.Argument(help="Images, folders of images, or .npz files with an array x.")
    ],
    bundle: Annotated[
        Path | None, typer.Option(help="Bundle (default: the default bundle).")
    ] = None,
    policy: PolicyFile = None,
    upstream: UpstreamUrl = None,
    upstream_ca: UpstreamCa = None,
    upstream_token_file: UpstreamTokenFile = None,
    trust: Trust = None,
    pixels: Annotated[
        Path | None,
        typer.Option(
            "--pixels",
            help="Folder for the pixels as they were screened: a PNG file for each image, "
            "named by its pixels_sha256.",
        ),
    ] = None,
    as_json: Json = True,
) -> None:
    """Screen images offline, without a server. Prints a JSON line for each image.

    Label and probability are the classifier's, for refused images too. pixels_sha256 is the hash of
    the pixels that the guard saw, after decoding, resizing and cropping. Exits with 1 when a file
    could not be read.
    """
    from firewall.screening.load import load_guard
    from firewall.screening.policy import Policy

    if pixels is not None:
        try:
            pixels.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--pixels: {pixels}: {error.strerror}") from error
    opened = open_checked(bundle, trust)
    with opened_upstream(opened.manifest, upstream, upstream_ca, upstream_token_file) as classifier:
        guard = load_guard(opened, Policy.of(policy, None, None), classifier=classifier)
        failed = _screen(opened, guard, paths, pixels)
    if failed:
        raise typer.Exit(1)


def _screen(opened: Bundle, guard: LiveGuard, paths: list[Path], pixels: Path | None) -> bool:
    """Print a line for each image; returns whether one could not be read."""
    from firewall.decoding.pixels import write_png
    from firewall.screening.offline import Row, rows
    from firewall.screening.offline import screen as screen_rows

    labels = opened.labels
    failed = False
    source = rows(paths, opened.manifest.input, opened.manifest.preprocessing)
    for one in screen_rows(guard, source):
        if isinstance(one, Row):
            failed = True
            print(json.dumps({"path": one.path, "error": one.error}, allow_nan=False), flush=True)
            continue
        line = {
            "path": one.path,
            "verdict": one.decision.verdict.value,
            "label": labels[one.index],
            "probability": one.probability,
            "p_value": one.decision.p_value,
            "reasons": list(one.decision.reasons),
            "statistics": dict(one.decision.statistics),
            "pixels_sha256": one.pixels_sha256,
        }
        if pixels is not None and one.pixels is not None:
            try:
                write_png(one.pixels, pixels)
            except OSError as error:
                raise ConfigError(f"--pixels: {pixels}: {error.strerror}") from error
        print(json.dumps(line, allow_nan=False), flush=True)
    return failed


@app.command()
def plugins(as_json: Json = False) -> None:
    """List the installed plugins, and why a broken one cannot be loaded."""
    from firewall.monitors.registry import MonitorInfo, MonitorRegistry

    try:
        from firewall.stages.registry import PluginInfo, Registry
    except ImportError as error:
        raise ConfigError(
            "plugins: stages are torch modules; pip install 'robustness-firewall[train]'"
        ) from error

    lines: list[PluginInfo | MonitorInfo] = [*Registry.discover().report()]
    lines += MonitorRegistry.discover().report()
    if as_json:
        print(json.dumps([vars(line) for line in lines], allow_nan=False))
        return
    for line in lines:
        state = "ok" if line.error is None else f"broken: {line.error}"
        print(f"{line.kind:9} {line.name:20} {line.distribution} {line.version}  {state}")


app.command()(attack)
app.command()(guard)
app.command()(calibrate)
app.command("calibrate-monitor")(calibrate_monitor)
app.command()(evaluate)
app.command()(train)
app.command()(serve)
app.command()(token)


@bundle_app.command("show")
def bundle_show(
    path: Annotated[
        Path | None, typer.Argument(help="Bundle (default: the default bundle).")
    ] = None,
    trust: Trust = None,
    as_json: Json = False,
) -> None:
    """Check a bundle and print its model card, or its manifest as JSON."""
    opened = open_checked(path, trust)
    if as_json:
        print(opened.manifest.to_json().decode(), end="")
    else:
        print(opened.files["MODEL_CARD.md"].decode(errors="replace"), end="")


@bundle_app.command("verify")
def bundle_verify(
    path: Annotated[
        Path | None, typer.Argument(help="Bundle (default: the default bundle).")
    ] = None,
    upstream: UpstreamUrl = None,
    upstream_ca: UpstreamCa = None,
    upstream_token_file: UpstreamTokenFile = None,
    trust: Trust = None,
    as_json: Json = False,
) -> None:
    """Check everything about a bundle: signature, files, graphs, and the bundle's self-test.

    A bundle of a served classifier tests itself on recorded answers; with --upstream, the
    classifier is asked whether it still answers the same.
    """
    import numpy as np

    from firewall.screening.classifier import Answers, Replay
    from firewall.screening.load import load_guard, read_selftest
    from firewall.screening.policy import Policy
    from firewall.screening.selftest import same_classifier
    from firewall.screening.split import SplitGuard

    opened = open_checked(path, trust)
    stored = read_selftest(opened)
    # Off: whether a rate can be promised is between a policy and its operator.
    off = Policy(mode="off")
    manifest = opened.manifest
    if manifest.classifier.kind == "remote" and upstream is None:
        # Nobody is asked: the self-test replays what the classifier answered.
        stand_in = Replay(Answers(np.empty((0, *manifest.score_shape), np.float32)))
        stored.run(load_guard(opened, off, classifier=stand_in).compiled)
    else:
        with opened_upstream(manifest, upstream, upstream_ca, upstream_token_file) as classifier:
            compiled = load_guard(opened, off, classifier=classifier).compiled
            stored.run(compiled)
            if isinstance(compiled, SplitGuard) and compiled.remote:
                same_classifier(stored, compiled)
    if as_json:
        body = {
            "name": manifest.name,
            "version": manifest.version,
            "digest": opened.digest,
            "signer": opened.signer,
            "files": len(opened.files),
        }
        print(json.dumps(body, allow_nan=False))
        return
    print(f"{manifest.name} {manifest.version}: good")
    print(f"  digest {opened.digest}\n  signer {opened.signer}")


@bundle_app.command("default")
def bundle_default(
    witness: Annotated[
        bool,
        typer.Option(
            help="With EfficientNet-Lite2 as a second network that looks at every image; it speaks "
            "where the policy says paranoia = 3, and takes the extra `witness`."
        ),
    ] = False,
) -> None:
    """Build the default bundle if it is not cached, and print its path."""

    def say(step: str) -> None:
        print(f"firewall: {step}", file=sys.stderr, flush=True)

    print(default_bundle(say, witness=witness))


def _print_story(told: Story) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="A cat, an iguana, a firewall")
    for column in ("what is sent", "bare classifier", "firewall"):
        table.add_column(column)
    story = told.to_json()
    clean, forged = story["clean"], story["forged"]
    label = f"{clean['label']} {100 * (clean['probability'] or 0):.0f} %"
    bare_clean = f"{told.bare_clean_label} {100 * told.bare_clean_probability:.0f} %"
    bare = f"{forged['bare_label']} {100 * forged['bare_probability']:.1f} %"
    table.add_row("the cat", bare_clean, f"{clean['verdict']}: {label}")
    table.add_row(
        "the forgery, 4/255", bare, f"{forged['verdict']}: {', '.join(forged['reasons'])}"
    )
    saved = story["forged_jpeg"]
    table.add_row(
        "the forgery saved as JPEG 75",
        "",
        f"{saved['verdict']}: {', '.join(saved['reasons']) or saved['label']}",
    )
    table.add_row("the forgery, monitor mode", bare, story["monitor"]["verdict"])
    console = Console()
    console.print(table)
    console.print(f"picture: {story['picture']}, {story['seconds']} s", highlight=False)
