"""The quarantine's part of the admin service: list, show, label, forget."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from firewall.bundle.spec import InputSpec
from firewall.decoding.pixels import to_png
from firewall.errors import ConfigError, InvalidInput
from firewall.quarantine.review import to_pixels
from firewall.quarantine.store import Record, Store
from firewall.serve.audit import Audit
from firewall.wire import admin_pb2 as wire

#: Rows of one answer, and when none are asked for.
_MAX_LIMIT, _DEFAULT_LIMIT = 1000, 50
_MAX_LABEL, _MAX_NAME = 256, 128


class QuarantineReview:
    """Answers the quarantine's part of `AdminService`."""

    def __init__(
        self, store: Store | None, input_of: Callable[[str], InputSpec | None], audit: Audit
    ) -> None:
        """Set where rows are kept.

        Args:
            store: None where nothing is kept.
            input_of: input of a model by name, which says how a row is drawn; None where no such
                model is served.
            audit: told who labelled or removed what.

        """
        self._kept, self._input_of, self._audit = store, input_of, audit

    @property
    def _store(self) -> Store:
        if self._kept is None:
            raise ConfigError("quarantine: nothing is kept; serve with --quarantine")
        return self._kept

    def find(self, request: wire.ListQuarantineRequest) -> wire.ListQuarantineResponse:
        """List rows, the newest first."""
        if request.limit > _MAX_LIMIT:
            raise InvalidInput("limit", f"{request.limit}; expected at most {_MAX_LIMIT}")
        found = self._store.find(
            client=_name("client", request.client),
            model=_name("model", request.model),
            reviewed=request.reviewed if request.HasField("reviewed") else None,
            before=request.before or None,
            limit=request.limit or _DEFAULT_LIMIT,
        )
        return wire.ListQuarantineResponse(rows=[_row(one) for one in found])

    def get(self, request: wire.GetQuarantinedRequest) -> wire.QuarantinedRow:
        """Show one row, with its image where the model that saw it is served."""
        record = self._store.get(request.id)
        row = _row(record)
        spec = self._input_of(record.model)
        if spec is None:
            return row
        data = self._store.image(record)
        if data.shape == spec.shape:
            pixels = to_pixels(data, spec)
            row.png = to_png(pixels)
        return row

    def label(self, request: wire.LabelQuarantinedRequest, who: str) -> wire.QuarantinedRow:
        """Record what a person sees in a row."""
        if len(request.label) > _MAX_LABEL:
            raise InvalidInput("label", f"{len(request.label)} characters; at most {_MAX_LABEL}")
        self._store.label(request.id, request.label, who[:_MAX_NAME])
        self._audit.event("labelled", id=request.id, label=request.label, who=who)
        return _row(self._store.get(request.id))

    def forget(self, request: wire.ForgetClientRequest, who: str) -> wire.ForgetClientResponse:
        """Remove every row and image of a client."""
        client = _name("client", request.client)
        if client is None:
            raise InvalidInput("client", "is empty; expected a pseudonym, as rows have it")
        count = self._store.forget(client)
        self._audit.event("forgotten", client=client, rows=count, who=who)
        return wire.ForgetClientResponse(rows=count)


def _name(field: str, value: str) -> str | None:
    if len(value) > _MAX_NAME or "\0" in value:
        raise InvalidInput(field, f"expected at most {_MAX_NAME} characters, none of them NUL")
    return value or None


def _time(at: datetime | None) -> str:
    return "" if at is None else at.isoformat(timespec="milliseconds")


def _row(record: Record) -> wire.QuarantinedRow:
    same: dict[str, Any] = {
        name: getattr(record, name)
        for name in (
            "id", "request_id", "row", "client", "model", "version", "bundle", "policy", "verdict",
            "reasons", "statistics", "p_value", "said", "label", "sampled",
        )
    }  # fmt: skip
    return wire.QuarantinedRow(
        **same,
        created=_time(record.created),
        reviewer=record.reviewer or "",
        reviewed=_time(record.reviewed),
    )
