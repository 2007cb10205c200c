"""Write docs/reference/settings.md: `python -m firewall.cli.settings_page`.

The page lists every setting of the server, every key of a policy, and every limit, from the code
that reads or enforces them. A test compares the committed page with what this module writes.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from firewall.bundle.onnx_file import MAX_TENSOR
from firewall.decoding.decode import MAX_SCAN_PIXELS
from firewall.decoding.image_header import MAX_SEGMENTS
from firewall.documents import MAX_DEPTH, MAX_JSON, MAX_TOML
from firewall.quarantine.writer import MAX_QUEUED_ROWS
from firewall.screening.policy import Exclusion, MonitorSpec, Policy
from firewall.screening.session import WORKING_MEMORY, WORKING_MEMORY_MIB
from firewall.serve.admin import server as admin
from firewall.serve.admin.workers import CHANGE_TIMEOUT
from firewall.serve.admission import MAX_CLIENTS
from firewall.serve.audit import MAX_QUEUED_LINES
from firewall.serve.grpc_health import (
    MAX_REFLECTIONS,
    MAX_WATCHES,
    REFLECTION_TIMEOUT,
    SIDE_CALLS,
    SILENCE_TIMEOUT,
)
from firewall.serve.grpc_health import (
    MESSAGE_TIMEOUT as HEALTH_TIMEOUT,
)
from firewall.serve.grpc_server import BUSY_MESSAGE_TIMEOUT, MESSAGE_TIMEOUT, options
from firewall.serve.grpc_server import MAX_CONNECTIONS as GRPC_CONNECTIONS
from firewall.serve.http_protocol import (
    HEADER_TIMEOUT,
    MAX_HEADER_BYTES,
    MAX_HEADER_FIELDS,
    MAX_PIPELINED,
    READ_TIMEOUT,
)
from firewall.serve.json_memory import JSON_MEMORY
from firewall.serve.message_limits import MAX_FIELDS
from firewall.serve.model import MAX_CERTIFYING
from firewall.serve.receive import ANSWER_TIMEOUT, MAX_ANSWERS
from firewall.serve.rest_converters import MAX_FORM_FIELD, MAX_INFLATION
from firewall.serve.rest_server import KEEP_ALIVE, MAX_CONNECTIONS
from firewall.serve.rollout import LOCK_TIMEOUT
from firewall.serve.settings import PREFIX, Settings, fields
from firewall.serve.shadow import MAX_QUEUED_REQUESTS
from firewall.upstream.settings import UpstreamSettings

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "settings.md"

_HEAD = """\
<!-- Written by `python -m firewall.cli.settings_page` (`make docs`); do not edit. -->

# Settings

`firewall serve` reads its settings from four places; later ones win:

1. defaults;
2. `firewall.toml` in the working directory, or the file that `--config` or `FIREWALL_CONFIG` names;
3. environment variables `FIREWALL_<NAME>`;
4. flags.

In the file a setting has the name of its flag with underscores: `max_rows = 16`. A list is a TOML
array in the file, values separated by commas in a variable, and a repeated flag. `firewall serve
--help` shows the same texts. A setting that does not exist is an error in the file and among the
flags; an unknown variable `FIREWALL_<NAME>` is a warning in the log.
"""

_OTHER_HEAD = """\
## Other variables

| variable | what it is |
|---|---|
| `FIREWALL_CONFIG` | Settings file, as `--config`. |
| `FIREWALL_CONFIG_DIR` | Folder of keys: `signing.key`, `trusted/*.pub`, `pseudonym.key`; the \
platform's configuration folder when not set. |
| `FIREWALL_CACHE_DIR` | Folder of the default bundle; the platform's cache folder when not set. |
| `FIREWALL_RUNTIME_DIR` | Folder of the admin socket; `XDG_RUNTIME_DIR/robustness-firewall`, or a \
folder of this user beneath the temporary folder, when not set. |
| `FIREWALL_UPSTREAM_TOKEN` | Bearer token for the upstream server, where `upstream_token_file` is \
not set. |
| `FIREWALL_STATE_URL` | Redis URL that `--state @` stands for. |
| `FIREWALL_QUARANTINE_URL`, `FIREWALL_QUARANTINE_IMAGES_URL` | URLs that `@` stands for in \
`--quarantine` and `--quarantine-images`. |
| `FIREWALL_WORKING_MEMORY_MIB` | MiB that the graphs of one process may take while they run, \
without weights; not on CUDA. |
"""

_POLICY_HEAD = """\
## Policy

The policy is a TOML file of its own (`--policy`), because a running server takes a new one without
a restart. An unknown key is an error.
"""

_LIMITS_HEAD = """\
## All limits

What a client, an operator's file or a bundle may use, and what happens beyond it. A name in the
third column is a setting of this page; the others are fixed.
"""


def page() -> str:
    """The whole page."""
    parts = [_HEAD, *_settings(), _OTHER_HEAD, _POLICY_HEAD]
    for title, model in (
        ("", Policy),
        ("### `[[exclusions]]`", Exclusion),
        ("### `[[monitors]]`", MonitorSpec),
    ):
        if title:
            parts.append(f"{title}\n")
        parts.append(_table(("key", "type", "default", "what it is"), _keys(model)))
    return "\n".join([*parts, _LIMITS_HEAD, _limits()])


def main() -> None:
    """Write the page."""
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")


# --- settings ------------------------------------------------------------------------------------


def _settings() -> Iterator[str]:
    groups: dict[str, list[tuple[str, FieldInfo]]] = {}
    for name, group, field in fields():
        groups.setdefault(group, []).append((name, field))
    for group, members in groups.items():
        yield f"## {group}\n"
        yield _table(
            ("flag", "variable", "default", "what it is"),
            (
                (
                    _flag(name, field),
                    f"`{PREFIX}{name.upper()}`",
                    _default(name, field),
                    _help(field),
                )
                for name, field in members
            ),
        )


def _flag(name: str, field: FieldInfo) -> str:
    if name == "bundles":
        return "`BUNDLE...`"
    flag = name.replace("_", "-")
    return f"`--{flag}`, `--no-{flag}`" if field.annotation is bool else f"`--{flag}`"


def _default(name: str, field: FieldInfo) -> str:
    value = field.default
    if value is PydanticUndefined:
        return "required" if field.default_factory is None else ""
    if value is None or value == ():
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, int) and ("bytes" in name or "memory" in name) and not value % (1 << 20):
        return f"{value} ({_size(value)})"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _help(field: FieldInfo) -> str:
    bounds = _bounds(field)
    return f"{field.description or ''}{f' Range: {bounds}.' if bounds else ''}"


def _bounds(field: FieldInfo) -> str:
    """The range of a number, such as `1 to 256`; empty where there is none."""
    signs = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    found = {
        sign: getattr(bound, sign)
        for bound in _metadata(field)
        for sign in signs
        if getattr(bound, sign, None) is not None
    }
    if found.keys() == {"ge", "le"}:
        return f"{found['ge']:g} to {found['le']:g}"
    return ", ".join(f"{signs[sign]} {value}" for sign, value in found.items())


def _metadata(field: FieldInfo) -> Iterator[Any]:
    """Constraints of a field, and those of its annotation where it is optional."""
    yield from field.metadata
    for part in typing.get_args(field.annotation):
        if typing.get_origin(part) is Annotated:
            for bound in typing.get_args(part)[1:]:
                yield from bound.metadata if isinstance(bound, FieldInfo) else (bound,)


# --- policy --------------------------------------------------------------------------------------


def _keys(model: type[BaseModel]) -> Iterator[Sequence[str]]:
    for name, field in model.model_fields.items():
        yield f"`{name}`", _type(field.annotation), _default(name, field), _help(field)


def _type(annotation: Any) -> str:
    """A type in the words of a user who writes TOML."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return ", ".join(
            _type(part) for part in typing.get_args(annotation) if part is not type(None)
        )
    if typing.get_origin(annotation) is Literal:
        values = typing.get_args(annotation)
        return ", ".join(f'`"{one}"`' if isinstance(one, str) else f"`{one}`" for one in values)
    if typing.get_origin(annotation) is tuple:
        return "tables"
    if typing.get_origin(annotation) is dict:
        return "table"
    return {bool: "true or false", int: "number", float: "number", str: "text"}[annotation]


# --- limits --------------------------------------------------------------------------------------


class _Limit(NamedTuple):
    what: str
    value: str
    setting: str
    beyond: str


def _limits() -> str:
    grpc = dict(options(0))
    default = {name: field.default for name, field in Settings.model_fields.items()}
    refused, busy = "`INVALID_ARGUMENT`, 400", "`RESOURCE_EXHAUSTED` with `RetryInfo`, 429"
    later = f"{busy} with `Retry-After`"

    def own(name: str, what: str, value: str, beyond: str) -> _Limit:
        assert name in default, name
        return _Limit(what, value, f"`{name}`", beyond)

    def seconds(milliseconds: str) -> str:
        return f"{grpc[milliseconds] / 1000:g} s"

    listed = (
        "**Size of a request**",
        own("max_message_bytes", "message or body, before and after decompression",
            _size(default["max_message_bytes"]), "`RESOURCE_EXHAUSTED`, 413"),
        _Limit("memory of all JSON bodies that are parsed", _size(JSON_MEMORY), "",
               f"413 where one alone takes more, else {later}"),
        own("max_rows", "rows of a request", f"{default['max_rows']}", refused),
        _Limit("fields of a protobuf message, all levels together", f"{MAX_FIELDS}", "", refused),
        _Limit("field of a form that is no file", _size(MAX_FORM_FIELD), "", "400"),
        _Limit("metadata of a gRPC call", f"{_size(grpc['grpc.max_metadata_size'])} to "
               f"{_size(grpc['grpc.absolute_max_metadata_size'])}", "",
               "`RESOURCE_EXHAUSTED`: some calls between the two sizes, all beyond"),
        "**Encoded images**",
        own("max_pixels", "pixels of an image", _count(default["max_pixels"]), refused),
        _Limit("pixels times scans of a JPEG", _count(MAX_SCAN_PIXELS), "", refused),
        _Limit("segments or chunks of a file", f"{MAX_SEGMENTS}", "", refused),
        own("decoding_memory", "memory of all images that are being decoded",
            _size(default["decoding_memory"]), f"waits for at most `max_wait`, then {later}"),
        own("decoding_timeout", "decoding of one image",
            f"{default['decoding_timeout']:g} s", f"killed, then {later}"),
        "**Requests in progress**",
        own("max_requests", "requests in progress, over all protocols",
            f"{default['max_requests']}", later),
        _Limit("those of one client, while others ask", "as many as are free", "", later),
        _Limit("those of one client whose message has not arrived", "half as many as are free "
               "while others ask, three quarters of all otherwise", "", later),
        own("max_wait", "expected wait of a request", f"{default['max_wait']:g} s", later),
        own("client_rate", "rows a second of one client", "no limit", later),
        own("client_burst", "rows of one client at once", "twice the rate", later),
        _Limit("clients that are remembered for that", f"{MAX_CLIENTS}", "",
               "the one that has been silent for longest is forgotten"),
        _Limit("requests for certificates, by model", f"{MAX_CERTIFYING}", "", later),
        "**Time**",
        _Limit("arrival of a message or body", f"{MESSAGE_TIMEOUT:g} s; {BUSY_MESSAGE_TIMEOUT:g} s "
               "while three quarters of the requests in progress are taken", "",
               "`CANCELLED`, 499"),
        _Limit("a client's taking of an answer", f"{ANSWER_TIMEOUT:g} s (gRPC: and at most "
               f"{MAX_ANSWERS} answers that are not taken), {READ_TIMEOUT:g} s (REST)", "",
               "cancelled, closed"),
        _Limit("wait of a gRPC call for the server to take it up",
               f"{grpc['grpc.server_max_unrequested_time_in_server']} s", "", "reset"),
        own("grace", "end of running requests when the server stops", f"{default['grace']:g} s",
            "cancelled"),
        "**Connections**",
        _Limit("gRPC connections", f"{GRPC_CONNECTIONS}, and a quarter of the process's file "
               "descriptors", "", "closed"),
        _Limit("calls at a time on a gRPC connection", f"{grpc['grpc.max_concurrent_streams']}",
               "", "the client waits"),
        _Limit("handshake of a gRPC connection", seconds("grpc.server_handshake_timeout_ms"), "",
               "closed"),
        _Limit("gRPC keep-alive: a ping every",
               f"{seconds('grpc.keepalive_time_ms')}, answered within "
               f"{seconds('grpc.keepalive_timeout_ms')}", "", "closed"),
        _Limit("pings of a gRPC client without data", "one every "
               f"{seconds('grpc.http2.min_ping_interval_without_data_ms')}, "
               f"{grpc['grpc.http2.max_ping_strikes']} strikes", "",
               "`GOAWAY` with `ENHANCE_YOUR_CALM`"),
        _Limit("idle gRPC connection", seconds("grpc.max_connection_idle_ms"), "", "`GOAWAY`"),
        _Limit("age of a gRPC connection", seconds("grpc.max_connection_age_ms"), "",
               f"`GOAWAY`; running calls have {seconds('grpc.max_connection_age_grace_ms')} more"),
        _Limit("REST connections, shared fairly by client", f"{MAX_CONNECTIONS}, and a quarter of "
               "the process's file descriptors", "", "closed"),
        _Limit("headers of a REST request", f"{MAX_HEADER_BYTES >> 10} KiB, "
               f"{MAX_HEADER_FIELDS} fields", "", "the connection is closed"),
        _Limit("REST requests that wait for earlier ones of their connection", f"{MAX_PIPELINED}",
               "", "the connection is closed"),
        _Limit("inflation of a compressed REST body, beyond 1 MiB", f"{MAX_INFLATION} times", "",
               "413"),
        _Limit("time of the headers of a REST request", f"{HEADER_TIMEOUT:g} s", "",
               "closed"),
        _Limit("idle REST connection between requests", f"{KEEP_ALIVE} s", "", "closed"),
        "**Health and reflection**",
        _Limit("calls of health at a time", f"{SIDE_CALLS}", "", "`RESOURCE_EXHAUSTED`"),
        _Limit("watches of health at a time", f"{MAX_WATCHES}", "", "`UNIMPLEMENTED`"),
        _Limit("arrival of a message", f"{HEALTH_TIMEOUT:g} s", "", "cancelled"),
        _Limit("streams of reflection at a time", f"{MAX_REFLECTIONS}", "", "`RESOURCE_EXHAUSTED`"),
        _Limit("silence of a reflection stream, and its whole time",
               f"{SILENCE_TIMEOUT:g} s, {REFLECTION_TIMEOUT:g} s", "", "ended"),
        "**Administration**",
        _Limit("requests at a time", f"{admin.MAX_REQUESTS}", "", "`RESOURCE_EXHAUSTED`"),
        _Limit("message", _size(admin.MAX_MESSAGE_BYTES), "", "`RESOURCE_EXHAUSTED`"),
        _Limit("arrival of a message", f"{admin.MESSAGE_TIMEOUT:g} s", "", "cancelled"),
        _Limit("wait for another change to end", f"{LOCK_TIMEOUT:g} s", "",
               "`RESOURCE_EXHAUSTED`"),
        _Limit("a change by all workers", f"{CHANGE_TIMEOUT:g} s", "", "undone"),
        "**Calls of an upstream classifier**",
        own("upstream_timeout", "a call without a deadline",
            f"{default['upstream_timeout']:g} s", "`DEADLINE_EXCEEDED`, 504"),
        own("upstream_rows", "rows of a call, views included", f"{default['upstream_rows']}",
            "several calls"),
        own("upstream_bytes", "tensor bytes of a call", f"{default['upstream_bytes']}",
            "several calls"),
        _Limit("failures in a row", f"{UpstreamSettings.breaker}", "",
               f"`UNAVAILABLE`, 503 at once; one call every {UpstreamSettings.pause:g} s tries"),
        "**Bundles and documents**",
        _Limit("a tensor of a graph, where its shape is known", _size(MAX_TENSOR), "",
               "the bundle is refused"),
        _Limit("memory of all running graphs of a process, without weights; not on CUDA",
               _size(WORKING_MEMORY_MIB << 20), f"`{WORKING_MEMORY}`",
               "the bundle is refused, or its row is a fault"),
        _Limit("TOML document", _size(MAX_TOML), "", "refused"),
        _Limit("JSON document of a bundle", _size(MAX_JSON), "", "refused"),
        _Limit("depth of a document", f"{MAX_DEPTH} levels", "", "refused"),
        "**Records**",
        _Limit("audit lines that wait to be written", f"{MAX_QUEUED_LINES}", "",
               "dropped and counted"),
        _Limit("quarantined rows that wait to be written", f"{MAX_QUEUED_ROWS}", "",
               "dropped and counted"),
        own("quarantine_bytes", "images in quarantine", _size(default["quarantine_bytes"]),
            "the oldest go first"),
        own("quarantine_days", "age of a quarantined row", f"{default['quarantine_days']:g} days",
            "removed"),
        own("state_keys", "entries that monitors remember in a process",
            f"{default['state_keys']}", "the oldest go first"),
        _Limit("requests that wait for a shadow", f"{MAX_QUEUED_REQUESTS}", "",
               "left out and counted"),
    )  # fmt: skip
    return _table(
        ("limit", "value", "setting", "beyond it"),
        ((one, "", "", "") if isinstance(one, str) else one for one in listed),
    )


# --- text ----------------------------------------------------------------------------------------


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    text = "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n"
                   for line in lines)  # fmt: skip
    return text.replace("| --- ", "|---").replace("|--- |", "|---|").replace("  |", " |")


def _size(value: int) -> str:
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if value >= unit and not value % unit:
            return f"{value // unit} {name}"
    return f"{value} bytes"


def _count(value: int) -> str:
    return f"{value // 1_000_000} million"


if __name__ == "__main__":
    main()
