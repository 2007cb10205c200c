"""Store quarantined rows in a table (SQLite, PostgreSQL), and images in a folder or fsspec URL.

An image is written before its row, so every row has its image. An image without a row is what a
crash left behind; `strays` removes it.

Rows and images are data of clients: the SQLite file and local images have mode 0600, and a local
folder of images has mode 0700 (`firewall.private_files` says what happens to existing ones).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import numpy.typing as npt

from firewall.errors import ConfigError, InvalidInput
from firewall.private_files import make_private_folder, open_private, tighten
from firewall.quarantine.entry import Entry, from_bytes, to_bytes
from firewall.secret_urls import without_password

#: Rows of one transaction.
_BATCH = 64


@dataclass(frozen=True)
class Limits:
    """How much is kept.

    Attributes:
        bytes: size of all images together; the oldest are removed first.
        days: age at which a row is removed.

    """

    bytes: int = 10 << 30
    days: float = 30.0


@dataclass(frozen=True)
class Record:
    """A row of the table.

    Attributes:
        id: number of the row, as the commands show it.
        created: time of storing, in UTC.
        label: class that a person sees; None is not reviewed, empty is "none of the classes".
        reviewer: name of that person.
        reviewed: time of the review, in UTC.
        image: name of the image in the store.
        size: bytes of the image in the store.

    The other attributes are those of `Entry`.

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


#: What a store may do to what it finds.
Access = Literal["create", "write", "read"]


class Store:
    """Rows and images. One instance per process."""

    def __init__(
        self, database: str | Path, images: str | Path, *, access: Access = "create"
    ) -> None:
        """Open database and folder.

        Args:
            database: file of SQLite, or SQLAlchemy URL such as `postgresql+psycopg://...`.
            images: a folder, or an fsspec URL.
            access: `create` makes what is missing; the others want it to be there.

        Raises:
            ConfigError: a package is missing, or database or folder cannot be opened.

        """
        try:
            import fsspec
            import sqlalchemy as sql
            from fsspec.implementations.local import LocalFileSystem
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
        if access != "create" and isinstance(database, Path) and not database.is_file():
            raise ConfigError(f"quarantine: {database} does not exist")
        try:
            # From its parts: within the text of a URL, a file's `?` would begin its parameters.
            url: Any = database
            if isinstance(database, Path):
                url = sql.URL.create("sqlite", database=str(database))
                if access == "read":
                    place = f"file:{quote(str(database))}?mode=ro"
                    url = sql.URL.create("sqlite", database=place, query={"uri": "true"})
            # Parameters of a statement are data of clients: no log or error holds them.
            self._engine = sql.create_engine(url, pool_pre_ping=True, hide_parameters=True)
            if self._engine.dialect.name == "sqlite" and access != "read":
                _make_private(self._engine.url.database)

                # Readers do not hold up the writer, and a crash loses nothing that was committed.
                @event.listens_for(self._engine, "connect")
                def _prepare(connection: Any, _: Any) -> None:
                    connection.execute("PRAGMA journal_mode=WAL")
                    connection.execute("PRAGMA busy_timeout=5000")

            if access == "create":
                metadata.create_all(self._engine)
            found = sql.inspect(self._engine).has_table(self._table.name)
            if found and access != "read":
                self._add_missing()
        except Exception as error:  # SQLAlchemy's, and each driver's own
            raise ConfigError(
                f"--quarantine: {without_password(str(database))} cannot be opened: "
                f"{type(error).__name__}"
            ) from error
        if not found:
            raise ConfigError(f"quarantine: {without_password(str(database))} holds no quarantine")
        try:
            if isinstance(images, Path):
                self._files, self._root = LocalFileSystem(), str(images)
            else:
                self._files, self._root = fsspec.core.url_to_fs(images)
            self._local = isinstance(self._files, LocalFileSystem)
            if access != "create":
                return
            if self._local:
                make_private_folder(self._root, holds="*.npz")
            else:
                self._files.makedirs(self._root, exist_ok=True)
        except Exception as error:  # each file system has its own
            raise ConfigError(
                f"--quarantine-images: {without_password(str(images))} cannot be opened: "
                f"{type(error).__name__}"
            ) from error

    def add(self, entries: Sequence[Entry]) -> None:
        """Store rows; when this returns, they are committed.

        A row that an earlier, interrupted attempt has stored stays as it is.

        Raises:
            Exception: an error of the database or the file system; the call can be repeated.

        """
        rows: list[dict[str, Any]] = []
        now = datetime.now(UTC)
        for entry in entries:
            data = to_bytes(entry.wire)
            name = f"{entry.key}.npz"
            self._write(name, data)
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
                    "reasons": json.dumps(entry.reasons, allow_nan=False),
                    "statistics": json.dumps(
                        # A row that cannot be stored would be tried for ever, and hold up others.
                        {
                            key: float(f"{value:.6g}")
                            for key, value in entry.statistics.items()
                            if math.isfinite(value)
                        },
                        allow_nan=False,
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
        """List rows, the newest first.

        Args:
            client: pseudonym; None is all.
            model: name; None is all.
            reviewed: whether a person has labelled the row; None is both.
            before: only rows with a smaller id.
            limit: largest number of rows.

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
        """Return one row.

        Raises:
            InvalidInput: there is no such row.

        """
        found = self._table.select().where(self._table.c.id == identifier)
        with self._engine.connect() as connection:
            row = connection.execute(found).mappings().first()
        if row is None:
            raise InvalidInput("id", f"{identifier} is not in quarantine")
        return _record(row)

    def image(self, record: Record) -> npt.NDArray[Any]:
        """Read the image of a row as it was sent or decoded, [*input shape].

        Raises:
            InvalidInput: the image is gone or damaged.

        """
        try:
            with self._files.open(f"{self._root}/{record.image}", "rb") as file:
                data: bytes = file.read()
        except OSError as error:
            raise InvalidInput("image", f"of {record.id} is gone") from error
        return from_bytes(data)

    def label(self, identifier: int, label: str, reviewer: str) -> None:
        """Store the class that a person sees in a row; empty is none of the classes.

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
        """Iterate over the rows that a person has labelled with a class, the oldest first."""
        found = (
            self._table.select()
            .where(self._table.c.label.is_not(None), self._table.c.label != "")
            .order_by(self._table.c.id)
        )
        with self._engine.connect() as connection:
            for row in connection.execution_options(yield_per=_BATCH).execute(found).mappings():
                yield _record(row)

    def traffic(self, model: str) -> Iterator[Record]:
        """Iterate over the rows of a model that were kept by sampling, the oldest first."""
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

    def sweep(self, limits: Limits, *, by_age: bool = True) -> int:
        """Remove rows that are too old, then the oldest until the size fits; returns how many.

        Args:
            limits: how much is kept.
            by_age: whether age counts; a clock that has jumped would make every row too old.

        """
        removed = 0
        if by_age:
            oldest_kept = datetime.now(UTC) - timedelta(days=limits.days)
            removed = self._remove(self._table.c.created < oldest_kept)
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
        """Remove images without a row; younger ones may belong to a row that is being stored."""
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
        """Add the column that a table of an earlier version does not have."""
        sql, name = self._sql, self._table.name
        there = {one["name"] for one in sql.inspect(self._engine).get_columns(name)}
        if "sampled" not in there:
            change = f"ALTER TABLE {name} ADD COLUMN sampled BOOLEAN DEFAULT false NOT NULL"
            with self._engine.begin() as connection:
                connection.execute(sql.text(change))

    def _write(self, name: str, data: bytes) -> None:
        place = f"{self._root}/{name}"
        with open_private(place, "wb") if self._local else self._files.open(place, "wb") as file:
            file.write(data)

    def _remove(self, which: Any) -> int:
        """Remove rows, and then their images, so that no row is left without its image."""
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


def _make_private(database: str | None) -> None:
    """Create a SQLite file with mode 0600, or tighten it. SQLite creates others with its mode."""
    if not database or database == ":memory:" or database.startswith("file:"):
        return
    with open_private(database, "ab"):
        pass
    for ending in ("-wal", "-shm", "-journal"):
        tighten(database + ending)


def _record(row: Any) -> Record:
    body = dict(row)
    body["reasons"] = tuple(json.loads(body["reasons"]))
    body["statistics"] = json.loads(body["statistics"])
    for key in ("created", "reviewed"):
        # SQLite forgets the zone.
        if body[key] is not None and body[key].tzinfo is None:
            body[key] = body[key].replace(tzinfo=UTC)
    return Record(**body)
