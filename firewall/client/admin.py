"""The client of `firewall.v1.AdminService`."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import grpc

from firewall.client.security import Tls, bearer, channel
from firewall.errors import ConfigError
from firewall.protocol.failure import failure
from firewall.wire import admin_pb2 as wire

_SERVICE = "/firewall.v1.AdminService/"


class AdminClient:
    """Asks a firewall for changes of what it serves."""

    def __init__(
        self,
        address: str,
        *,
        tls: Tls | None = None,
        token: str = "",
        timeout: float = 300.0,
    ) -> None:
        """Connect lazily.

        Args:
            address: of the admin service: `unix:/path/to/socket`, or `host:port`.
            tls: certificates; None means plain text.
            token: the operators' token, where the service asks for one.
            timeout: seconds of a call; loading a bundle takes some.

        """
        self._metadata = bearer(token)
        self._timeout = timeout
        self._channel = channel(address, tls)

    def status(self) -> list[wire.ModelStatus]:
        """What is live under every name."""
        answer = self._call("Status", wire.StatusRequest(), wire.StatusResponse)
        return list(answer.models)

    def reload(
        self, model: str = "", path: str = "", *, allow_downgrade: bool = False
    ) -> wire.ModelStatus:
        """Serve the bundle that lies at a path now; where the live one was opened without one."""
        request = wire.ReloadRequest(model=model, path=path, allow_downgrade=allow_downgrade)
        return self._change("Reload", request)

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

    def quarantine(
        self,
        *,
        model: str = "",
        client: str = "",
        reviewed: bool | None = None,
        limit: int = 50,
        before: int = 0,
    ) -> list[wire.QuarantinedRow]:
        """Rows that were kept, the newest first; `before` is the last id of the page before."""
        request = wire.ListQuarantineRequest(model=model, client=client, limit=limit, before=before)
        if reviewed is not None:
            request.reviewed = reviewed
        answer = self._call("ListQuarantine", request, wire.ListQuarantineResponse)
        return list(answer.rows)

    def quarantined(self, identifier: int) -> wire.QuarantinedRow:
        """One of them, with its image as PNG."""
        request = wire.GetQuarantinedRequest(id=identifier)
        row: wire.QuarantinedRow = self._call("GetQuarantined", request, wire.QuarantinedRow)
        return row

    def label(self, identifier: int, label: str) -> wire.QuarantinedRow:
        """Say what is to be seen in a row; empty is none of the classes."""
        request = wire.LabelQuarantinedRequest(id=identifier, label=label)
        row: wire.QuarantinedRow = self._call("LabelQuarantined", request, wire.QuarantinedRow)
        return row

    def forget(self, client: str) -> int:
        """Remove every row and image of a client, by its pseudonym; returns how many."""
        request = wire.ForgetClientRequest(client=client)
        return int(self._call("ForgetClient", request, wire.ForgetClientResponse).rows)

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
            return ask(request, timeout=self._timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                raise ConfigError(str(error.details())) from error
            raise failure(error) from error
