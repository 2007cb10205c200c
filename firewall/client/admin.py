"""The client of `firewall.v1.AdminService`."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import grpc

from firewall.client.security import Tls, channel
from firewall.errors import ConfigError
from firewall.protocol.failure import failure
from firewall.wire import admin_pb2 as wire

_SERVICE = "/firewall.v1.AdminService/"


class AdminClient:
    """Asks a firewall for changes of what it serves."""

    def __init__(
        self,
        address: str = "localhost:8083",
        *,
        tls: Tls | None = None,
        timeout: float = 300.0,
    ) -> None:
        """Nothing is sent before the first call.

        Args:
            address: host:port of the admin service.
            tls: certificates; None is without TLS, for a loopback address.
            timeout: seconds of a call; loading a bundle takes some.

        """
        self._timeout = timeout
        self._channel = channel(address, tls)

    def status(self) -> list[wire.ModelStatus]:
        """What is live under every name."""
        answer = self._call("Status", wire.StatusRequest(), wire.StatusResponse)
        return list(answer.models)

    def reload(self, model: str = "", path: str = "") -> wire.ModelStatus:
        """Serve the bundle that lies at a path now; where it was opened without one."""
        return self._change("Reload", wire.ReloadRequest(model=model, path=path))

    def rollback(self, model: str = "") -> wire.ModelStatus:
        """Undo the last change."""
        return self._change("Rollback", wire.RollbackRequest(model=model))

    def set_policy(self, toml: str = "", model: str = "") -> wire.ModelStatus:
        """Decide by another policy; without one, by the server's settings, read again."""
        return self._change("SetPolicy", wire.SetPolicyRequest(model=model, toml=toml))

    def start_shadow(self, path: str, percent: float, model: str = "") -> wire.ModelStatus:
        """Let a candidate see a share of the traffic."""
        request = wire.StartShadowRequest(model=model, path=path, percent=percent)
        return self._change("StartShadow", request)

    def promote_shadow(self, model: str = "") -> wire.ModelStatus:
        """Serve the candidate."""
        return self._change("PromoteShadow", wire.PromoteShadowRequest(model=model))

    def drop_shadow(self, model: str = "") -> wire.ModelStatus:
        """Compare no more."""
        return self._change("DropShadow", wire.DropShadowRequest(model=model))

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _change(self, method: str, request: Any) -> wire.ModelStatus:
        answer: wire.ModelStatus = self._call(method, request, wire.ModelStatus)
        return answer

    def _call(self, method: str, request: Any, answer: Any) -> Any:
        ask = self._channel.unary_unary(
            _SERVICE + method,
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        try:
            return ask(request, timeout=self._timeout)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                raise ConfigError(str(error.details())) from error
            raise failure(error) from error
