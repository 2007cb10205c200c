"""Commands. A composition root: it puts parts together and prints; it decides nothing."""

from __future__ import annotations

import json
import logging
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from firewall.cli.attack import attack
from firewall.cli.calibrate import calibrate
from firewall.cli.evaluate import evaluate
from firewall.cli.gan import gan_app
from firewall.cli.quarantine import open_store, quarantine_app
from firewall.cli.shared import (
    Json,
    Trust,
    default_bundle,
    default_bundle_in_a_process,
    open_checked,
)
from firewall.cli.train import train
from firewall.errors import ConfigError, FirewallError

if TYPE_CHECKING:
    from firewall.bundle.manifest import Manifest
    from firewall.demo.story import Story
    from firewall.guard.policy import Policy
    from firewall.quarantine.writer import Writer
    from firewall.serve.metrics import Metrics
    from firewall.serve.upstream import Upstream

app = typer.Typer(
    name="firewall",
    help="A robustness firewall in front of an image classifier.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
bundle_app = typer.Typer(help="Look at bundles.", no_args_is_help=True)
app.add_typer(bundle_app, name="bundle")
app.add_typer(gan_app, name="gan")
app.add_typer(quarantine_app, name="quarantine")

PolicyFile = Annotated[
    Path | None, typer.Option("--policy", help="Policy in TOML; defaults apply without.")
]


def main() -> None:
    """Run a command; an error of ours is one line on standard error."""
    try:
        app()
    except FirewallError as error:
        print(f"firewall: {error}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, ConfigError) else 1) from None
    except BrokenPipeError:
        # Whoever read our output has seen enough.
        sys.stderr.close()
        raise SystemExit(141) from None


@app.command()
def demo(
    as_json: Json = False,
    picture: Annotated[Path, typer.Option(help="Where to draw the story.")] = Path(
        "firewall-demo.png"
    ),
) -> None:
    """Accept a cat, forge it into an iguana, refuse it."""
    start = time.monotonic()

    def progress(step: str) -> None:
        print(f"[{time.monotonic() - start:5.1f} s] {step}", file=sys.stderr, flush=True)

    path = default_bundle(progress)
    from firewall.demo.story import tell

    story = tell(path, picture, progress)
    # Building the bundle is part of what a newcomer waits for.
    story = replace(story, seconds=time.monotonic() - start)
    if as_json:
        print(json.dumps(story.to_json()))
    else:
        _print_story(story)
    if not story.as_expected:
        raise typer.Exit(1)


@app.command()
def serve(
    bundles: Annotated[
        list[Path] | None, typer.Argument(help="Bundles; the default one without.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to bind.")] = "0.0.0.0",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="gRPC port; 0 takes a free one.")
    ] = 8081,
    http_port: Annotated[
        int,
        typer.Option(
            min=0, max=65535, help="Port of /metrics, /healthz, /readyz; 0 takes a free one."
        ),
    ] = 8082,
    upstream: Annotated[
        str | None,
        typer.Option(
            help="The classifier of a bundle that has none inside: "
            "grpc://host:port/model[/version], grpcs:// with TLS."
        ),
    ] = None,
    upstream_ca: Annotated[
        Path | None, typer.Option(help="Certificate authorities of grpcs:// (PEM).")
    ] = None,
    upstream_timeout: Annotated[
        float, typer.Option(min=0.001, help="Seconds of a call without a deadline.")
    ] = 30.0,
    upstream_rows: Annotated[
        int, typer.Option(min=1, help="Rows of one call, views among them.")
    ] = 256,
    policy: PolicyFile = None,
    mode: Annotated[
        str | None, typer.Option(help="enforce, monitor or off; overrides the policy file.")
    ] = None,
    false_positive_rate: Annotated[
        float | None, typer.Option(help="Overrides the policy file.")
    ] = None,
    trust: Trust = None,
    threads: Annotated[int, typer.Option(min=0, help="Of one inference; 0 is one a core.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    max_message: Annotated[
        int, typer.Option(min=1024, max=(1 << 31) - 1, help="Bytes of one message.")
    ] = 64 << 20,
    max_rows: Annotated[int, typer.Option(min=1, help="Rows of one request.")] = 64,
    max_pixels: Annotated[int, typer.Option(min=1, help="Of an encoded image.")] = 50_000_000,
    grace: Annotated[
        float, typer.Option(min=0, help="Seconds for running requests at the end.")
    ] = 15.0,
    quarantine: Annotated[
        str | None,
        typer.Option(
            help="Keep refused and flagged rows: a file, or sqlite:/// or postgresql+psycopg://."
        ),
    ] = None,
    quarantine_images: Annotated[
        str | None, typer.Option(help="Folder or fsspec URL of their images; beside the file.")
    ] = None,
    quarantine_key: Annotated[
        Path | None, typer.Option(help="Key of clients' pseudonyms; made if it is not there.")
    ] = None,
    quarantine_days: Annotated[float, typer.Option(min=0.001, help="That a row is kept.")] = 30.0,
    quarantine_bytes: Annotated[
        int, typer.Option(min=1 << 20, help="Of images; the oldest go first.")
    ] = 10 << 30,
    audit_log: Annotated[
        str, typer.Option(help="File to append JSON lines to; - is standard output.")
    ] = "-",
) -> None:
    """Serve bundles over gRPC until stopped."""
    from firewall.bundle.signing import config_dir, trusted_keys
    from firewall.bundle.store import open_bundle
    from firewall.quarantine.entry import pseudonym
    from firewall.quarantine.key import pseudonym_key
    from firewall.serve.audit import Audit
    from firewall.serve.codec import Limits
    from firewall.serve.metrics import Metrics
    from firewall.serve.runtime import Models, ServedModel, load_guard
    from firewall.serve.server import Server, Settings

    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s"
    )
    if device not in ("cpu", "cuda"):
        raise ConfigError(f"--device: {device!r}; expected cpu or cuda")
    chosen = _policy(policy, mode, false_positive_rate)
    paths = bundles or [default_bundle_in_a_process()]
    if upstream is not None and len(paths) != 1:
        raise ConfigError(f"--upstream: is for one bundle; {len(paths)} are given")
    trusted = trusted_keys(trust or ())
    metrics = Metrics()
    audit = Audit(_audit_stream(audit_log), metrics.audit_dropped)
    writer, key = None, b""
    if quarantine is not None:
        writer = _quarantine(
            quarantine, quarantine_images, quarantine_days, quarantine_bytes, metrics
        )
        key = pseudonym_key(quarantine_key or config_dir() / "pseudonym.key")
    served: dict[str, ServedModel] = {}
    for path in paths:
        opened = open_bundle(path, trusted)
        name = opened.manifest.name
        if name in served:
            raise ConfigError(f"bundles: two of them are named {name!r}")
        classifier = None
        if upstream is not None:
            classifier = _upstream(
                opened.manifest,
                upstream,
                upstream_ca,
                timeout=upstream_timeout,
                batch=upstream_rows,
                max_message=max_message,
            )
        served[name] = ServedModel(
            opened,
            load_guard(
                opened,
                chosen,
                threads=threads,
                device="cuda" if device == "cuda" else "cpu",
                classifier=classifier,
            ),
            metrics=metrics,
            audit=audit,
            batch_rows=8,
            queue_rows=max(128, 2 * max_rows),
            keep=None if writer is None else writer.put,
            pseudonym=lambda client: pseudonym(client, key),
        )
    settings = Settings(
        host=host,
        port=port,
        http_port=http_port,
        max_message=max_message,
        grace=grace,
        limits=Limits(rows=max_rows, pixels=max_pixels),
    )
    server = Server(Models(served), settings, metrics)
    # A list and not an Event: setting an Event twice from a handler can lock its own thread out.
    signals: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: signals.append(received))
    server.start()
    audit.event(
        "serving",
        host=host,
        port=server.port,
        http_port=server.http_port,
        models={name: one.manifest.version for name, one in served.items()},
        provider=[one.guard.compiled.provider for one in served.values()],
        mode=chosen.mode,
        false_positive_rate=chosen.false_positive_rate,
        policy=chosen.digest,
    )
    while not signals:
        time.sleep(0.1)
    audit.event("draining", grace=grace)
    server.stop()
    if writer is not None:
        writer.close()
    audit.event("stopped")
    audit.close()


@app.command()
def predict(
    images: Annotated[list[Path], typer.Argument(help="JPEG, PNG or .npy files.")],
    address: Annotated[str, typer.Option(help="host:port of a firewall.")] = "localhost:8081",
    model: Annotated[str, typer.Option(help="Name; empty is the only one served.")] = "",
    top_k: Annotated[int, typer.Option(min=1, help="Labels of each image.")] = 5,
    timeout: Annotated[float, typer.Option(help="Seconds.")] = 30.0,
    as_json: Json = False,
) -> None:
    """Ask a running firewall; exits with 3 when anything was refused."""
    import numpy as np

    from firewall.client import Client
    from firewall.guard.verdict import Verdict

    found: list[tuple[str, Any]] = []
    with Client(address, model=model, timeout=timeout) as client:
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
                    }
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
    paths: Annotated[list[Path], typer.Argument(help="Images, folders, or .npz files with x.")],
    bundle: Annotated[Path | None, typer.Option(help="The default one without.")] = None,
    policy: PolicyFile = None,
    trust: Trust = None,
    as_json: Json = True,
) -> None:
    """Run the guard offline: one JSON line an image. Exits with 1 when a file could not be read.

    Label and probability are what would have been answered, of refused images too.
    """
    from firewall.bundle.signing import trusted_keys
    from firewall.bundle.store import open_bundle
    from firewall.guard.offline import Row, rows
    from firewall.guard.offline import screen as screen_rows
    from firewall.serve.runtime import load_guard

    opened = open_bundle(bundle or default_bundle_in_a_process(), trusted_keys(trust or ()))
    guard = load_guard(opened, _policy(policy, None, None))
    labels = opened.labels
    failed = False
    source = rows(paths, opened.manifest.input, opened.manifest.preprocessing)
    for one in screen_rows(guard, source):
        if isinstance(one, Row):
            failed = True
            print(json.dumps({"path": one.path, "error": one.error}), flush=True)
            continue
        line = {
            "path": one.path,
            "verdict": one.decision.verdict.value,
            "label": labels[one.index],
            "probability": one.probability,
            "p_value": one.decision.p_value,
            "reasons": list(one.decision.reasons),
            "statistics": dict(one.decision.statistics),
        }
        print(json.dumps(line), flush=True)
    if failed:
        raise typer.Exit(1)


@app.command()
def plugins(as_json: Json = False) -> None:
    """List the installed plugins; a broken one is a line with its reason."""
    try:
        from firewall.stages.registry import Registry
    except ImportError as error:
        raise ConfigError(
            "plugins: stages are torch modules; pip install 'robustness-firewall[train]'"
        ) from error

    lines = Registry.discover().report()
    if as_json:
        print(json.dumps([vars(line) for line in lines]))
        return
    for line in lines:
        state = "ok" if line.error is None else f"broken: {line.error}"
        print(f"{line.kind:9} {line.name:20} {line.distribution} {line.version}  {state}")


app.command()(attack)
app.command()(calibrate)
app.command()(evaluate)
app.command()(train)


@bundle_app.command("show")
def bundle_show(
    path: Annotated[Path | None, typer.Argument(help="The default one without.")] = None,
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
    path: Annotated[Path | None, typer.Argument(help="The default one without.")] = None,
    trust: Trust = None,
    as_json: Json = False,
) -> None:
    """Check everything about a bundle, its own self-test included."""
    from firewall.guard.policy import Policy
    from firewall.serve.runtime import load_guard, read_selftest

    opened = open_checked(path, trust)
    # Off: whether a rate can be promised is between a policy and its operator.
    guard = load_guard(opened, Policy(mode="off"))
    read_selftest(opened).run(guard.compiled)
    manifest = opened.manifest
    if as_json:
        body = {
            "name": manifest.name,
            "version": manifest.version,
            "digest": opened.digest,
            "signer": opened.signer,
            "files": len(opened.files),
        }
        print(json.dumps(body))
        return
    print(f"{manifest.name} {manifest.version}: good")
    print(f"  digest {opened.digest}\n  signer {opened.signer}")


@bundle_app.command("default", hidden=True)
def bundle_default() -> None:
    """Build the default bundle if it is not cached, and print where it lies."""
    print(default_bundle(lambda step: print(f"firewall: {step}", file=sys.stderr, flush=True)))


def _policy(path: Path | None, mode: str | None, rate: float | None) -> Policy:
    from pydantic import ValidationError

    from firewall.guard.policy import Policy

    policy = Policy.load(path) if path else Policy()
    changes = {"mode": mode, "false_positive_rate": rate}
    body = policy.model_dump() | {key: value for key, value in changes.items() if value is not None}
    try:
        return Policy.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        flag = str(first["loc"][0]).replace("_", "-")
        raise ConfigError(f"--{flag}: {first['msg']}, got {first['input']!r}") from error


def _quarantine(
    database: str, images: str | None, days: float, size: int, metrics: Metrics
) -> Writer:
    """Where refused rows go, by a thread of its own."""
    from firewall.quarantine.store import Limits
    from firewall.quarantine.writer import Writer

    writer = Writer(
        open_store(database, images),
        Limits(bytes=size, days=days),
        stored=lambda rows: metrics.quarantined("stored", rows),
        dropped=lambda rows: metrics.quarantined("dropped", rows),
    )
    metrics.quarantine_queue(lambda: writer.waiting)
    return writer


def _upstream(manifest: Manifest, url: str, authorities: Path | None, **others: Any) -> Upstream:
    """The classifier behind a guard; it may come up later."""
    from firewall.serve.upstream import Upstream, UpstreamSettings

    if authorities is not None:
        try:
            others["tls"] = authorities.read_bytes()
        except OSError as error:
            raise ConfigError(
                f"--upstream-ca: {authorities} cannot be read: {error.strerror}"
            ) from error
    settings = UpstreamSettings.parse(url, **others)
    return Upstream(settings, input_name=manifest.input.name, output=manifest.output)


def _audit_stream(name: str) -> Any:
    if name == "-":
        return sys.stdout
    try:
        return open(name, "a", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--audit-log: {name} cannot be opened: {error.strerror}") from error


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
    table.add_row("the forgery, monitor mode", bare, story["monitor"]["verdict"])
    console = Console()
    console.print(table)
    console.print(f"picture: {story['picture']}, {story['seconds']} s", highlight=False)
