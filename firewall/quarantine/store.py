"""Where quarantined rows lie: a table (SQLite, PostgreSQL), and images in a folder or fsspec URL.

An image is written before its row, so a row that is there has its image; an image without a row is
what a crash left, and `sweep` removes it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy.typing as npt

from firewall.errors import ConfigError, InvalidInput
from firewall.quarantine.entry import Entry, from_bytes, to_bytes

#: Rows of one transaction.
_BATCH = 64


@dataclass(frozen=True)
class Limits:
    """How much is kept.

    Attributes:
        bytes: of images, in all; the oldest go first.
        days: that a row is kept.

    """

    bytes: int = 10 << 30
    days: float = 30.0


@dataclass(frozen=True)
class Record:
    """A row of the table.

    Attributes:
        id: by which the commands speak of it.
        created: when, in UTC.
        label: what a person sees; None is not reviewed, empty is "none of the classes".
        reviewer: who said so.
        size: of the image in the store, in bytes.

    Others are those of `Entry`.

    """

    id: int
    created: datetime
    request_id: str
    row: int
    client: str
    model: str
    version: str
    bundle: str
    policy: str
    verdict: str
    reasons: tuple[str, ...]
    statistics: dict[str, float]
    p_value: float | None
    said: int
    image: str
    size: int
    label: str | None
    reviewer: str | None
    reviewed: datetime | None
    sampled: bool


class Store:
    """Rows and images. One per process and thread of work."""

    def __init__(self, database: str, images: str) -> None:
        """Open, and make what is missing.

        Args:
            database: SQLAlchemy URL, `sqlite:///file.db` or `postgresql+psycopg://...`.
            images: a folder, or an fsspec URL.

        Raises:
            ConfigError: a package is missing, or one of them cannot be opened.

        """
        try:
            import fsspec
            import sqlalchemy as sql
            from sqlalchemy import event
        except ImportError as error:
            raise ConfigError(
                "quarantine: needs more packages; pip install 'robustness-firewall[quarantine]'"
            ) from error
        self._sql = sql
        metadata = sql.MetaData()
        self._table = sql.Table(
            "firewall_quarantine",
            metadata,
            sql.Column("id", sql.Integer, primary_key=True, autoincrement=True),
            sql.Column("created", sql.DateTime(timezone=True), nullable=False, index=True),
            sql.Column("request_id", sql.String(128), nullable=False, index=True),
            sql.Column("row", sql.Integer, nullable=False),
            sql.Column("client", sql.String(64), nullable=False, index=True),
            sql.Column("model", sql.String(128), nullable=False),
            sql.Column("version", sql.String(64), nullable=False),
            sql.Column("bundle", sql.String(64), nullable=False),
            sql.Column("policy", sql.String(64), nullable=False),
            sql.Column("verdict", sql.String(16), nullable=False),
            sql.Column("reasons", sql.Text, nullable=False),
            sql.Column("statistics", sql.Text, nullable=False),
            sql.Column("p_value", sql.Float),
            sql.Column("said", sql.Integer, nullable=False),
            sql.Column("image", sql.String(64), nullable=False, unique=True),
            sql.Column("size", sql.BigInteger, nullable=False),
            sql.Column("label", sql.String(256)),
            sql.Column("reviewer", sql.String(128)),
            sql.Column("reviewed", sql.DateTime(timezone=True)),
            sql.Column("sampled", sql.Boolean, nullable=False, server_default=sql.false()),
        )
        try:
            self._engine = sql.create_engine(database, pool_pre_ping=True)
            if self._engine.dialect.name == "sqlite":
                # Readers (people) do not hold up the writer, and a crash loses nothing committed.
                @event.listens_for(self._engine, "connect")
                def _prepare(connection: Any, _: Any) -> None:
                    connection.execute("PRAGMA journal_mode=WAL")
                    connection.execute("PRAGMA busy_timeout=5000")

            metadata.create_all(self._engine)
            self._add_missing()
        except Exception as error:  # SQLAlchemy's, and each driver's own
            raise ConfigError(
                f"--quarantine: {_hidden(database)} cannot be opened: {type(error).__name__}"
            ) from error
        try:
            self._files, self._root = fsspec.core.url_to_fs(images)
            self._files.makedirs(self._root, exist_ok=True)
        except Exception as error:  # each file system has its own
            raise ConfigError(f"--quarantine-images: {images} cannot be opened: {error}") from error

    def add(self, entries: Sequence[Entry]) -> None:
        """Keep some rows; when this returns, they are there.

        A row that is there already, from a try of which nobody heard the end, stays as it is.

        Raises:
            Exception: the database's or the file system's own; to be tried again.

        """
        rows: list[dict[str, Any]] = []
        now = datetime.now(UTC)
        for entry in entries:
            data = to_bytes(entry.wire)
            name = f"{entry.key}.npz"
            with self._files.open(f"{self._root}/{name}", "wb") as file:
                file.write(data)
            rows.append(
                {
                    "created": now,
                    "request_id": entry.request_id,
                    "row": entry.row,
                    "client": entry.client,
                    "model": entry.model,
                    "version": entry.version,
                    "bundle": entry.bundle,
                    "policy": entry.policy,
                    "verdict": entry.verdict,
                    "reasons": json.dumps(entry.reasons),
                    "statistics": json.dumps(
                        {key: float(f"{value:.6g}") for key, value in entry.statistics.items()}
                    ),
                    "p_value": entry.p_value,
                    "said": entry.said,
                    "image": name,
                    "size": len(data),
                    "sampled": entry.sampled,
                }
            )
        names = [row["image"] for row in rows]
        with self._engine.begin() as connection:
            there = self._sql.select(self._table.c.image).where(self._table.c.image.in_(names))
            known = {row[0] for row in connection.execute(there)}
            fresh = [row for row in rows if row["image"] not in known]
            if fresh:
                connection.execute(self._table.insert(), fresh)

    def find(
        self,
        *,
        client: str | None = None,
        model: str | None = None,
        reviewed: bool | None = None,
        before: int | None = None,
        limit: int = 100,
    ) -> list[Record]:
        """The newest first.

        Args:
            client: pseudonym; None is all.
            model: name; None is all.
            reviewed: whether a person has labelled it; None is both.
            before: only rows with a smaller id.
            limit: at most so many.

        """
        found = self._table.select().order_by(self._table.c.id.desc()).limit(limit)
        if client is not None:
            found = found.where(self._table.c.client == client)
        if model is not None:
            found = found.where(self._table.c.model == model)
        if before is not None:
            found = found.where(self._table.c.id < before)
        if reviewed is not None:
            label = self._table.c.label
            found = found.where(label.is_not(None) if reviewed else label.is_(None))
        with self._engine.connect() as connection:
            return [_record(row) for row in connection.execute(found).mappings()]

    def get(self, identifier: int) -> Record:
        """One row.

        Raises:
            InvalidInput: there is none.

        """
        found = self._table.select().where(self._table.c.id == identifier)
        with self._engine.connect() as connection:
            row = connection.execute(found).mappings().first()
        if row is None:
            raise InvalidInput("id", f"{identifier} is not in quarantine")
        return _record(row)

    def image(self, record: Record) -> npt.NDArray[Any]:
        """The row as it was sent or decoded, [*input shape].

        Raises:
            InvalidInput: it is gone or damaged.

        """
        try:
            with self._files.open(f"{self._root}/{record.image}", "rb") as file:
                data: bytes = file.read()
        except OSError as error:
            raise InvalidInput("image", f"of {record.id} is gone") from error
        return from_bytes(data)

    def label(self, identifier: int, label: str, reviewer: str) -> None:
        """What a person sees in it; empty is none of the classes.

        Raises:
            InvalidInput: there is no such row.

        """
        change = (
            self._table.update()
            .where(self._table.c.id == identifier)
            .values(label=label, reviewer=reviewer, reviewed=datetime.now(UTC))
        )
        with self._engine.begin() as connection:
            if connection.execute(change).rowcount == 0:
                raise InvalidInput("id", f"{identifier} is not in quarantine")

    def labelled(self) -> Iterator[Record]:
        """Every row that a person has labelled with a class, the oldest first."""
        found = (
            self._table.select()
            .where(self._table.c.label.is_not(None), self._table.c.label != "")
            .order_by(self._table.c.id)
        )
        with self._engine.connect() as connection:
            for row in connection.execution_options(yield_per=_BATCH).execute(found).mappings():
                yield _record(row)

    def traffic(self, model: str) -> Iterator[Record]:
        """Every row of a model that was kept by lot, the oldest first."""
        found = (
            self._table.select()
            .where(self._table.c.sampled, self._table.c.model == model)
            .order_by(self._table.c.id)
        )
        with self._engine.connect() as connection:
            for row in connection.execution_options(yield_per=_BATCH).execute(found).mappings():
                yield _record(row)

    def forget(self, client: str) -> int:
        """Remove every row and image of a client; returns how many."""
        return self._remove(self._table.c.client == client)

    def sweep(self, limits: Limits) -> int:
        """Remove what is too old, then the oldest until the size fits; returns how many rows."""
        removed = self._remove(
            self._table.c.created < datetime.now(UTC) - timedelta(days=limits.days)
        )
        sql = self._sql
        with self._engine.connect() as connection:
            total = connection.execute(sql.select(sql.func.sum(self._table.c.size))).scalar() or 0
            over = int(total) - limits.bytes
            last = None
            if over > 0:
                oldest = sql.select(self._table.c.id, self._table.c.size).order_by(self._table.c.id)
                for identifier, size in connection.execute(oldest):
                    last, over = identifier, over - size
                    if over <= 0:
                        break
        return removed + (0 if last is None else self._remove(self._table.c.id <= last))

    def strays(self, older: timedelta = timedelta(hours=1)) -> int:
        """Remove images that no row speaks of, if they are old enough not to be on their way."""
        with self._engine.connect() as connection:
            known = {row[0] for row in connection.execute(self._sql.select(self._table.c.image))}
        removed = 0
        for found in self._files.ls(self._root, detail=True):
            name = str(found["name"]).rpartition("/")[2]
            if not name.endswith(".npz") or name in known:
                continue
            try:
                written = self._files.modified(found["name"])
            except NotImplementedError:
                continue
            written = written if written.tzinfo else written.replace(tzinfo=UTC)
            if datetime.now(UTC) - written >= older:
                self._files.rm(found["name"])
                removed += 1
        return removed

    def close(self) -> None:
        """Close the database."""
        self._engine.dispose()

    def _add_missing(self) -> None:
        """A column that a table of an earlier version does not have yet."""
        sql, name = self._sql, self._table.name
        there = {one["name"] for one in sql.inspect(self._engine).get_columns(name)}
        if "sampled" not in there:
            change = f"ALTER TABLE {name} ADD COLUMN sampled BOOLEAN DEFAULT false NOT NULL"
            with self._engine.begin() as connection:
                connection.execute(sql.text(change))

    def _remove(self, which: Any) -> int:
        """Rows first: an image without a row is a stray, a row without its image a lie."""
        with self._engine.begin() as connection:
            names = [
                row[0]
                for row in connection.execute(self._sql.select(self._table.c.image).where(which))
            ]
            connection.execute(self._table.delete().where(which))
        for name in names:
            try:
                self._files.rm(f"{self._root}/{name}")
            except FileNotFoundError:
                continue
        return len(names)


def _record(row: Any) -> Record:
    body = dict(row)
    body["reasons"] = tuple(json.loads(body["reasons"]))
    body["statistics"] = json.loads(body["statistics"])
    for key in ("created", "reviewed"):
        # SQLite forgets the zone.
        if body[key] is not None and body[key].tzinfo is None:
            body[key] = body[key].replace(tzinfo=UTC)
    return Record(**body)


def _hidden(url: str) -> str:
    """Without a password."""
    scheme, separator, rest = url.partition("://")
    if "@" not in rest:
        return url
    return f"{scheme}{separator}***@{rest.rpartition('@')[2]}"
