"""Quarantine as operators see it from elsewhere: look, label, forget."""

from __future__ import annotations

import io
from datetime import datetime
from typing import Any

from PIL import Image

from firewall.errors import ConfigError, InvalidInput, NotFound
from firewall.quarantine.review import to_pixels
from firewall.quarantine.store import Record, Store
from firewall.serve.audit import Audit
from firewall.serve.models import Models
from firewall.wire import admin_pb2 as wire

#: Rows of one answer, and when none are asked for.
_MOST, _USUAL = 1000, 50
_MAX_LABEL, _MAX_NAME = 256, 128


class Review:
    """Answers the quarantine's part of `AdminService`."""

    def __init__(self, store: Store | None, models: Models, audit: Audit) -> None:
        """Take over a store.

        Args:
            store: None where nothing is kept.
            models: whose input says how a row is drawn.
            audit: told who labelled or removed what.

        """
        self._kept, self._models, self._audit = store, models, audit

    @property
    def _store(self) -> Store:
        if self._kept is None:
            raise ConfigError("quarantine: nothing is kept here; serve with --quarantine")
        return self._kept

    def find(self, request: wire.ListQuarantineRequest) -> wire.ListQuarantineResponse:
        """Rows, the newest first."""
        if request.limit > _MOST:
            raise InvalidInput("limit", f"{request.limit}; expected at most {_MOST}")
        found = self._store.find(
            client=_name("client", request.client),
            model=_name("model", request.model),
            reviewed=request.reviewed if request.HasField("reviewed") else None,
            before=request.before or None,
            limit=request.limit or _USUAL,
        )
        return wire.ListQuarantineResponse(rows=[_row(one) for one in found])

    def get(self, request: wire.GetQuarantinedRequest) -> wire.QuarantinedRow:
        """One row, with its image where the model that saw it is served."""
        record = self._store.get(request.id)
        row = _row(record)
        try:
            with self._models.lease(record.model, "") as model:
                spec = model.manifest.input
        except NotFound:
            return row
        data = self._store.image(record)
        if data.shape == spec.shape:
            pixels = to_pixels(data, spec)
            buffer = io.BytesIO()
            Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG")
            row.png = buffer.getvalue()
        return row

    def label(self, request: wire.LabelQuarantinedRequest, who: str) -> wire.QuarantinedRow:
        """What a person sees in a row."""
        if len(request.label) > _MAX_LABEL:
            raise InvalidInput("label", f"{len(request.label)} characters; at most {_MAX_LABEL}")
        self._store.label(request.id, request.label, who[:_MAX_NAME])
        self._audit.event("labelled", id=request.id, label=request.label, who=who)
        return _row(self._store.get(request.id))

    def forget(self, request: wire.ForgetClientRequest, who: str) -> wire.ForgetClientResponse:
        """Remove a client's rows and images."""
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
