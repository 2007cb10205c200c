"""Calls of a served classifier over REST: the v2 API, with the binary tensor extension or JSON.

Imported only where an upstream is `http://` or `https://`. urllib3, since with bodies of 600 KB it
takes half the time of httpx, and its import half the time and half the memory.
"""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Sequence
from typing import Any, Literal
from urllib.parse import quote

import numpy.typing as npt
import urllib3
from urllib3.exceptions import HTTPError

from firewall.errors import (
    ConfigError,
    DeadlineExceeded,
    FirewallError,
    InvalidInput,
    NotReady,
    Overloaded,
    RemoteError,
    UpstreamError,
)
from firewall.upstream.rest_tensors import (
    LENGTH_HEADER,
    binary_body,
    json_body,
    outputs_of,
    tensor_infos_of,
)
from firewall.upstream.settings import UpstreamSettings
from firewall.upstream.transport import (
    CallFailed,
    Headers,
    ModelMetadata,
    Rows,
    says_too_large,
)

#: Connections that are kept; more are made when more calls run at a time.
_CONNECTIONS = 16
#: Bytes of JSON text that a number takes: ten digits, a point and a comma; three and a comma.
_TEXT_BYTES = {"uint8": 4, "float16": 12, "float32": 12}
#: Characters of a server's error that are kept.
_ERROR_LENGTH = 500
#: HTTP status -> gRPC status; others by their hundreds.
_STATUS = {
    400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND",
    405: "UNIMPLEMENTED", 408: "DEADLINE_EXCEEDED", 409: "FAILED_PRECONDITION",
    412: "FAILED_PRECONDITION", 413: "RESOURCE_EXHAUSTED", 415: "UNIMPLEMENTED",
    422: "INVALID_ARGUMENT", 429: "RESOURCE_EXHAUSTED", 501: "UNIMPLEMENTED", 502: "UNAVAILABLE",
    503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED",
}  # fmt: skip
#: HTTP statuses by which servers without the binary extension refuse a body that is not JSON.
_NOT_UNDERSTOOD = frozenset({400, 415, 422, 500, 501})

#: What is known of the server: `unknown` tries the binary extension first.
_Format = Literal["unknown", "binary", "json"]


class RestTransport:
    """A pool of connections to a server. Thread-safe."""

    def __init__(self, settings: UpstreamSettings, *, input_name: str) -> None:
        """Make a pool; it connects with the first call.

        Raises:
            ConfigError: the certificate authorities cannot be read.

        """
        self._settings, self._input = settings, input_name
        self._pool = _pool(settings)
        self._model = f"/v2/models/{quote(settings.model, safe='')}"
        if settings.version:
            self._model += f"/versions/{quote(settings.version, safe='')}"
        self._lock = threading.Lock()
        self._format: _Format = "unknown"
        self._asked_server = False

    def row_bytes(self, rows: Rows) -> int:
        """Bytes of a row: raw, or as JSON text."""
        if self._format == "json":
            return int(rows[:1].size) * _TEXT_BYTES[rows.dtype.name]
        return int(rows[:1].nbytes)

    def infer(
        self, rows: Rows, outputs: Sequence[str], timeout: float, headers: Headers
    ) -> dict[str, npt.NDArray[Any]]:
        """POST …/infer.

        A server that does not list the extension may understand it all the same, as KServe's does:
        the first call is binary, and JSON where the server refuses that one.
        """
        until = time.monotonic() + timeout
        self._ask_server(timeout, headers)
        form = self._format
        if form != "json":
            body, length = binary_body(self._input, rows, outputs)
            more = {LENGTH_HEADER: str(length), "Content-Type": "application/octet-stream"}
            status, answered, data = self._request(
                "POST", "/infer", _left(until), headers, body, more
            )
            if status == 200:
                self._learn("binary")
                return _outputs(answered, data)
            if form == "binary" or status not in _NOT_UNDERSTOOD:
                raise _failed(status, answered, data)
        body = json_body(self._input, rows, outputs)
        status, answered, data = self._request(
            "POST", "/infer", _left(until), headers, body, {"Content-Type": "application/json"}
        )
        if status != 200:
            raise _failed(status, answered, data)
        self._learn("json")
        return _outputs(answered, data)

    def ready(self, timeout: float, headers: Headers) -> bool:
        """GET …/ready."""
        return self._request("GET", "/ready", timeout, headers)[0] == 200

    def metadata(self, timeout: float, headers: Headers) -> ModelMetadata:
        """GET the model's description."""
        status, answered, data = self._request("GET", "", timeout, headers)
        if status != 200:
            raise _failed(status, answered, data)
        try:
            found = json.loads(data)
            return ModelMetadata(
                tensor_infos_of(found["inputs"]),
                tensor_infos_of(found["outputs"]),
                str(found.get("platform") or ""),
            )
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            problem = UpstreamError("the server does not describe the model as the v2 API does")
            raise CallFailed("INTERNAL", problem) from error

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()

    def _ask_server(self, timeout: float, headers: Headers) -> None:
        """Read once whether the server lists the binary extension."""
        if self._asked_server:
            return
        status, _, data = self._request("GET", "/v2", timeout, headers, absolute=True)
        self._asked_server = True
        try:
            listed = status == 200 and "binary_tensor_data" in json.loads(data)["extensions"]
        except (ValueError, TypeError, KeyError, RecursionError):
            return
        if listed:
            self._learn("binary")

    def _learn(self, form: _Format) -> None:
        with self._lock:
            self._format = form

    def _forget(self) -> None:
        """A server that went away may come back as another one."""
        with self._lock:
            self._format, self._asked_server = "unknown", False

    def _request(
        self,
        method: str,
        path: str,
        timeout: float,
        headers: Headers,
        body: bytes | None = None,
        more: dict[str, str] | None = None,
        *,
        absolute: bool = False,
    ) -> tuple[int, Any, bytes]:
        """Exchange one request; returns status, headers and body of the answer.

        Raises:
            CallFailed: there is no answer in time, or one over the limit.

        """
        until = time.monotonic() + timeout
        response = None
        try:
            response = self._pool.urlopen(
                method,
                path if absolute else self._model + path,
                body=body,
                headers=dict(headers) | (more or {}),
                timeout=urllib3.Timeout(total=timeout),
                retries=False,
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
            data = _read(response, self._settings.max_message, until)
            response.release_conn()
        except (HTTPError, OSError) as error:
            # urllib3 has four errors for a timeout, by what it was doing.
            if time.monotonic() >= until:
                raise _late() from error
            self._forget()
            raise CallFailed("UNAVAILABLE", NotReady(f"no connection: {error}")) from error
        except ValueError as error:
            # A field value with a line break, for one: it is not sent.
            raise CallFailed("INTERNAL", UpstreamError("the call cannot be sent")) from error
        finally:
            if response is not None and response.connection is not None:
                # Not read to its end: what comes on this connection now is not an answer.
                response.close()
                response.release_conn()
        return response.status, response.headers, data


def _pool(settings: UpstreamSettings) -> urllib3.HTTPConnectionPool:
    host, _, port = settings.address.rpartition(":")
    host = host.strip("[]")
    if settings.tls is None:
        return urllib3.HTTPConnectionPool(host, int(port), maxsize=_CONNECTIONS)
    try:
        context = ssl.create_default_context(
            cadata=settings.tls.decode("ascii") if settings.tls else None
        )
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError("--upstream-ca: holds no certificates in PEM") from error
    return urllib3.HTTPSConnectionPool(host, int(port), maxsize=_CONNECTIONS, ssl_context=context)


def _read(response: Any, limit: int, until: float) -> bytes:
    """Read a body of at most `limit` bytes, by `until` at the latest."""
    parts: list[bytes] = []
    size = 0
    while part := response.read1(1 << 16):
        parts.append(part)
        size += len(part)
        if size > limit:
            problem = UpstreamError(f"the answer is larger than {limit} bytes")
            raise CallFailed("RESOURCE_EXHAUSTED", problem, too_large=True)
        # A server that sends a byte at a time never lets the socket's own timeout expire.
        if time.monotonic() > until:
            raise _late()
    return b"".join(parts)


def _outputs(headers: Any, data: bytes) -> dict[str, npt.NDArray[Any]]:
    try:
        return outputs_of(data, headers.get(LENGTH_HEADER))
    except RemoteError as error:
        raise CallFailed("INTERNAL", error) from error


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise _late()
    return left


def _late() -> CallFailed:
    return CallFailed("DEADLINE_EXCEEDED", DeadlineExceeded("no answer in time"))


def _failed(status: int, headers: Any, data: bytes) -> CallFailed:
    """Translate an answer that is not 200."""
    text = _error_text(data) or f"HTTP {status}"
    name = _STATUS.get(status, "INTERNAL" if status >= 500 else "UNKNOWN")
    too_large = status == 413 or (400 <= status < 600 and says_too_large(text))
    error: FirewallError = RemoteError(f"HTTP {status}: {text}", name)
    if name == "INVALID_ARGUMENT":
        field, separator, problem = text.partition(": ")
        error = InvalidInput(field, problem) if separator else InvalidInput("inputs", text)
    elif status == 429:
        error = Overloaded(text, _retry_after(headers))
    return CallFailed(name, error, too_large=too_large)


def _retry_after(headers: Any) -> float:
    """Seconds of the Retry-After header; 1 where it is missing or a date."""
    try:
        return min(max(float(headers.get("Retry-After", "1")), 0.0), 3600.0)
    except ValueError:
        return 1.0


def _error_text(data: bytes) -> str:
    """What the server says is wrong, as one line."""
    text: Any = data[: 8 * _ERROR_LENGTH].decode("utf-8", "replace")
    try:
        body = json.loads(data)
        if isinstance(body, dict):
            text = body.get("error") or body.get("detail") or text
    except (ValueError, RecursionError):
        pass
    line = " ".join(str(text).split())
    return "".join(character for character in line if character.isprintable())[:_ERROR_LENGTH]
