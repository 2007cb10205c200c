"""What is refused is kept: rows, images, limits, reviews, and nothing of who it was."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy
from PIL import Image
from typer.testing import CliRunner

from firewall.bundle.signing import Signer
from firewall.bundle.spec import InputSpec
from firewall.cli.quarantine import quarantine_app
from firewall.errors import ConfigError, InvalidInput
from firewall.quarantine.entry import Entry, from_bytes, pseudonym, to_bytes
from firewall.quarantine.key import pseudonym_key
from firewall.quarantine.opening import open_store
from firewall.quarantine.review import to_pixels
from firewall.quarantine.store import Limits, Store
from firewall.quarantine.wall_clock import WallClock
from firewall.quarantine.writer import Writer
from tests.support.postgres import postgres

SPEC = InputSpec(name="image", channels=3, height=32, width=32)


def entry(number: int = 0, client: str = "c1", **changes: Any) -> Entry:
    wire = np.random.default_rng(number).random((3, 32, 32), np.float32)
    body: dict[str, Any] = {
        "request_id": f"r{number}", "row": 0, "client": client, "model": "tiny", "version": "1",
        "bundle": "b" * 64, "policy": "p" * 64, "verdict": "reject", "reasons": ("blur", "noise"),
        "statistics": {"blur": 0.123456789}, "p_value": 0.004, "said": 3, "wire": wire,
    }  # fmt: skip
    return Entry(**(body | changes))


@pytest.fixture(scope="module")
def postgres_url() -> Iterator[str]:
    with postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where rows go; empty."""
    if request.param == "sqlite":
        return str(tmp_path / "q.db")
    url: str = request.getfixturevalue("postgres_url")
    engine = sqlalchemy.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("DROP TABLE IF EXISTS firewall_quarantine"))
    engine.dispose()
    return url


@pytest.fixture
def store(database: str, tmp_path: Path) -> Iterator[Store]:
    opened = open_store(database, str(tmp_path / "q.db.images"))
    yield opened
    opened.close()


def test_what_is_kept_comes_back_as_it_was(store: Store, database: str, tmp_path: Path) -> None:
    first, second = entry(1), entry(2, verdict="flag", p_value=None)
    store.add([first, second])
    newest, oldest = store.find()
    assert (newest.request_id, oldest.request_id) == ("r2", "r1")
    assert newest.p_value is None
    assert oldest.reasons == ("blur", "noise")
    assert oldest.statistics == {"blur": 0.123457}
    assert oldest.created.tzinfo is not None
    assert np.array_equal(store.image(oldest), first.wire)
    # By another process as well.
    again = open_store(database, str(tmp_path / "q.db.images"))
    assert again.get(oldest.id) == oldest
    again.close()


def test_a_table_of_an_earlier_version_gets_its_new_column(
    store: Store, database: str, tmp_path: Path
) -> None:
    store.add([entry(1)])
    store.close()
    engine = sqlalchemy.create_engine(database if "://" in database else f"sqlite:///{database}")
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("ALTER TABLE firewall_quarantine DROP COLUMN sampled"))
    engine.dispose()
    again = open_store(database, str(tmp_path / "q.db.images"))
    assert [one.sampled for one in again.find()] == [False]
    again.add([entry(2, sampled=True)])
    assert [one.request_id for one in again.traffic("tiny")] == ["r2"]
    assert list(again.traffic("other")) == []
    again.close()


def test_a_row_that_is_tried_again_is_there_once(store: Store) -> None:
    """A connection that breaks while it commits leaves nobody knowing."""
    one = entry(1)
    store.add([one])
    store.add([one, entry(2)])
    assert len(store.find()) == 2


def test_lists_are_of_whom_one_asks_for(store: Store) -> None:
    store.add([entry(1), entry(2, client="c2"), entry(3, client="c2", model="other")])
    assert len(store.find(client="c2")) == 2
    assert [one.request_id for one in store.find(client="c2", model="tiny")] == ["r2"]
    store.label(store.find(client="c1")[0].id, "cat", "me")
    assert [one.request_id for one in store.find(reviewed=True)] == ["r1"]
    assert len(store.find(reviewed=False)) == 2
    assert len(store.find(limit=1)) == 1


def test_a_client_is_forgotten_with_its_images(store: Store, tmp_path: Path) -> None:
    store.add([entry(1), entry(2, client="c2"), entry(3)])
    assert store.forget("c1") == 2
    assert [one.client for one in store.find()] == ["c2"]
    assert len(list((tmp_path / "q.db.images").iterdir())) == 1
    assert store.forget("nobody") == 0


def test_size_and_age_have_their_limits(store: Store) -> None:
    store.add([entry(number) for number in range(5)])
    each = store.find()[0].size
    assert store.sweep(Limits(bytes=3 * each + each // 2, days=1)) == 2
    assert [one.request_id for one in store.find()] == ["r4", "r3", "r2"]
    assert store.sweep(Limits(bytes=10 * each, days=1)) == 0
    time.sleep(0.01)
    assert store.sweep(Limits(bytes=10 * each, days=1e-9)) == 3
    assert store.find() == []


def test_images_without_a_row_are_cleared_away(store: Store, tmp_path: Path) -> None:
    store.add([entry(1)])
    stray = tmp_path / "q.db.images" / "stray.npz"
    stray.write_bytes(b"left by a crash")
    assert store.strays() == 0
    assert store.strays(older=timedelta(0)) == 1
    assert not stray.exists()
    assert np.array_equal(store.image(store.find()[0]), entry(1).wire)


def test_what_is_not_there_is_said(store: Store, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="7 is not in quarantine"):
        store.get(7)
    with pytest.raises(InvalidInput, match="7 is not in quarantine"):
        store.label(7, "cat", "me")
    store.add([entry(1)])
    [image] = (tmp_path / "q.db.images").iterdir()
    image.write_bytes(b"damaged")
    with pytest.raises(InvalidInput, match="is damaged"):
        store.image(store.find()[0])
    image.unlink()
    with pytest.raises(InvalidInput, match="is gone"):
        store.image(store.find()[0])
    with pytest.raises(ConfigError, match="give a folder or URL"):
        open_store("postgresql+psycopg://me:secret@host/db", None)
    with pytest.raises(ConfigError, match="cannot be opened") as caught:
        Store(f"sqlite:///{tmp_path}/nowhere/q.db", str(tmp_path / "i"))
    assert "secret" not in str(caught.value)


def permissions(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.fixture
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.usefixtures("usual_umask")
def test_the_store_is_its_owners_alone(tmp_path: Path) -> None:
    folder = tmp_path / "q.db.images"
    store = open_store(str(tmp_path / "q.db"), None)
    store.add([entry(1)])
    files = [path for path in tmp_path.glob("q.db*") if path.is_file()]
    assert tmp_path / "q.db-wal" in files
    assert {permissions(path) for path in (*files, *folder.iterdir())} == {0o600}
    assert permissions(folder) == 0o700
    store.close()


@pytest.mark.usefixtures("usual_umask")
def test_a_store_that_others_could_read_is_tightened(tmp_path: Path) -> None:
    """As an earlier version has left it."""
    store = open_store(str(tmp_path / "q.db"), None)
    store.add([entry(1)])
    files = [path for path in tmp_path.glob("q.db*") if path.is_file()]
    assert len(files) == 3
    for path in files:
        path.chmod(0o644)
    (tmp_path / "q.db.images").chmod(0o755)
    again = open_store(str(tmp_path / "q.db"), None)
    assert {permissions(path) for path in files} == {0o600}
    assert permissions(tmp_path / "q.db.images") == 0o700
    assert len(again.find()) == 1
    again.close()
    store.close()


def test_passwords_of_urls_stay_off_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def command(*arguments: str) -> Any:
        return CliRunner().invoke(quarantine_app, list(arguments))

    done = command("list", "postgresql://me:s3cret@host/db", "--images", str(tmp_path))
    assert isinstance(done.exception, ConfigError)
    assert "FIREWALL_QUARANTINE_URL" in str(done.exception)
    done = command("list", str(tmp_path / "q.db"), "--images", "s3://key:s3cret@bucket")
    assert "FIREWALL_QUARANTINE_IMAGES_URL" in str(done.exception)
    # From a file or the environment the URL is used; nothing listens there.
    (tmp_path / "url").write_text("postgresql+psycopg://me:s3cret@127.0.0.1:1/db\n")
    monkeypatch.setenv("FIREWALL_QUARANTINE_URL", "postgresql+psycopg://me:s3cret@127.0.0.1:1/db")
    for value in (f"@{tmp_path}/url", "@"):
        done = command("list", value, "--images", str(tmp_path / "i"))
        assert "//***@127.0.0.1:1/db cannot be opened" in str(done.exception)
        assert "s3cret" not in str(done.exception)


def test_pickles_are_no_images() -> None:
    assert np.array_equal(from_bytes(to_bytes(np.arange(3))), np.arange(3))
    with pytest.raises(InvalidInput, match="is damaged"):
        from_bytes(b"\x80\x04K\x01.")


def test_pseudonyms_need_the_key(tmp_path: Path) -> None:
    key = pseudonym_key(tmp_path / "deep" / "key")
    assert (tmp_path / "deep" / "key").stat().st_mode & 0o077 == 0
    assert pseudonym_key(tmp_path / "deep" / "key") == key
    assert pseudonym("10.0.0.7", key) == pseudonym("10.0.0.7", key)
    assert pseudonym("10.0.0.7", key) != pseudonym("10.0.0.8", key)
    other = pseudonym_key(tmp_path / "other")
    assert pseudonym("10.0.0.7", key) != pseudonym("10.0.0.7", other)
    (tmp_path / "short").write_text("abcd")
    with pytest.raises(ConfigError, match="has 2 bytes"):
        pseudonym_key(tmp_path / "short")
    (tmp_path / "wrong").write_text("no key")
    with pytest.raises(ConfigError, match="does not hold a key"):
        pseudonym_key(tmp_path / "wrong")


class Slow:
    """A store that can be held, and that can fail."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.fail = 0
        self.kept: list[str] = []

    def add(self, entries: list[Entry]) -> None:
        self.open.wait(10)
        if self.fail:
            self.fail -= 1
            raise OSError("the disk is full")
        self.kept += [one.request_id for one in entries]

    def sweep(self, limits: Limits) -> int:
        return 0

    def strays(self) -> int:
        return 0

    def close(self) -> None:
        pass


def until(done: Any) -> None:
    for _ in range(1000):
        if done():
            return
        time.sleep(0.01)
    raise AssertionError("waited for ten seconds")


def test_a_store_that_is_down_loses_nothing_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firewall.quarantine.writer._AGAIN", 0.05)
    slow, stored = Slow(), []
    slow.fail = 3
    writer = Writer(slow, Limits(), stored=stored.append)  # type: ignore[arg-type]
    for number in range(5):
        writer.put(entry(number))
    until(lambda: sum(stored) == 5)
    assert sorted(slow.kept) == [f"r{number}" for number in range(5)]
    writer.close()


def test_a_full_queue_drops_and_counts_and_never_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firewall.quarantine.writer.MAX_QUEUED_ROWS", 4)
    slow, stored, dropped = Slow(), [], []
    slow.open.clear()
    writer = Writer(slow, Limits(), stored=stored.append, dropped=dropped.append)  # type: ignore[arg-type]
    # The first is taken from the queue, and held.
    writer.put(entry(100))
    until(lambda: writer.waiting == 0)
    for number in range(10):
        writer.put(entry(number))
    assert sum(dropped) == 6
    slow.open.set()
    writer.close()
    assert sum(stored) == 5
    assert sum(stored) + sum(dropped) == 11


def test_what_is_not_written_at_the_end_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firewall.quarantine.writer._AGAIN", 0.05)
    slow, stored, dropped = Slow(), [], []
    slow.fail = 10**6
    writer = Writer(slow, Limits(), stored=stored.append, dropped=dropped.append)  # type: ignore[arg-type]
    for number in range(3):
        writer.put(entry(number))
    writer.close(timeout=0.3)
    assert stored == []
    assert sum(dropped) == 3


@pytest.mark.parametrize(
    "spec",
    [
        SPEC,
        InputSpec(name="i", channels=3, height=32, width=32, layout="NHWC"),
        InputSpec(name="i", channels=3, height=32, width=32, datatype="UINT8", high=255),
        InputSpec(name="i", channels=3, height=32, width=32, low=-1, high=1),
        InputSpec(
            name="i", channels=3, height=32, width=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1)
        ),
    ],
)
def test_pixels_come_back_from_every_wire(spec: InputSpec) -> None:
    from firewall.screening.preprocess import to_wire

    pixels = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
    assert np.array_equal(to_pixels(to_wire(pixels, spec)[0], spec), pixels[0])


def test_from_quarantine_to_a_recipe(tiny_path: Path, signer: Signer, tmp_path: Path) -> None:
    """Label two rows, export them, and read them as a recipe does."""
    from firewall.train.sources import SourceSpec, read_reviewed

    database, key = str(tmp_path / "q.db"), tmp_path / "signer.pub"
    key.write_text(signer.public + "\n")
    store = open_store(database, None)
    store.add([entry(number) for number in range(3)])
    bundle = ["--bundle", str(tiny_path), "--trust", str(key)]

    def command(*arguments: str) -> str:
        done = CliRunner().invoke(quarantine_app, list(arguments))
        assert done.exit_code == 0, done.output + repr(done.exception)
        return done.output

    assert len(command("list", database, "--unreviewed").splitlines()) == 3
    shown = json.loads(command("show", database, "1", "--out", str(tmp_path / "one.png"), *bundle))
    assert shown["request_id"] == "r0"
    with Image.open(tmp_path / "one.png") as image:
        assert image.size == (32, 32)
    command("label", database, "1", "class 1", "--reviewer", "me", *bundle)
    command("label", database, "2", "", *bundle)
    command("label", database, "3", "class 3", *bundle)
    wrong = CliRunner().invoke(quarantine_app, ["label", database, "3", "clas 3", *bundle])
    assert "'clas 3' is none of the 10 classes; did you mean 'class 3'" in str(wrong.exception)
    assert "class 1" in command("list", database, "--reviewed")
    assert "2 images" in command("export", database, "--out", str(tmp_path / "out"), *bundle)
    spec = SourceSpec(source="digits", channels=3, height=32, width=32, reviewed="out")
    found = read_reviewed(spec, tmp_path, ("class 1", "class 3"))
    assert found is not None
    assert found.y.tolist() == [0, 1]
    assert np.array_equal(found.x[0].transpose(1, 2, 0), to_pixels(entry(0).wire, SPEC))
    done = CliRunner().invoke(
        quarantine_app, ["export", database, "--out", str(tmp_path / "out"), *bundle]
    )
    assert "is not empty" in str(done.exception)
    assert "3 rows removed" in command("forget", database, "c1")


@pytest.mark.parametrize(
    "name", ["q?x=1", "q#a", "q%20b", "q::c", "q;d", "q@e f", "caf\u00e9", "q&r"]
)
def test_every_path_is_a_path(name: str, tmp_path: Path) -> None:
    """In a URL some of these begin something else; rows were kept elsewhere."""
    folder = tmp_path / name
    folder.mkdir()
    for images in (None, str(folder / f"{name}.images")):
        store = open_store(str(folder / f"{name}.db"), images)
        store.add([entry(key=f"k{images is None}")])
        assert store.image(store.find()[0]).shape
        store.close()
    assert {path.name for path in tmp_path.iterdir()} == {name}
    found = {path.name for path in folder.iterdir() if not path.name.endswith(("-wal", "-shm"))}
    assert found == {f"{name}.db", f"{name}.db.images", f"{name}.images"}
    again = open_store(str(folder / f"{name}.db"), None, access="read")
    assert len(again.find()) == 2
    again.close()


def test_reading_makes_nothing_and_writes_nothing(tmp_path: Path) -> None:
    missing = tmp_path / "missing.db"
    for access in ("read", "write"):
        with pytest.raises(ConfigError, match=r"missing\.db does not exist"):
            open_store(str(missing), None, access=access)  # type: ignore[arg-type]
    assert not missing.exists()
    empty = tmp_path / "empty.db"
    sqlite3.connect(empty).close()
    empty.touch()
    with pytest.raises(ConfigError, match="holds no quarantine"):
        open_store(str(empty), None, access="read")
    store = open_store(str(tmp_path / "q.db"), None)
    store.add([entry()])
    store.close()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.db")}
    reader = open_store(str(tmp_path / "q.db"), None, access="read")
    assert len(reader.find()) == 1
    with pytest.raises(Exception, match="readonly"):
        reader.label(1, "a", "me")
    reader.close()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.db")} == before


def test_errors_of_the_database_hold_no_data_of_clients(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "q.db"), None)
    store.add([entry()])
    with sqlite3.connect(tmp_path / "q.db") as connection:
        connection.execute("DROP TABLE firewall_quarantine")
    with pytest.raises(Exception, match="no such table") as caught:
        store.find(client="a-client-of-ours")
    assert "a-client-of-ours" not in str(caught.value)
    store.close()


def test_a_clock_that_jumps_makes_nothing_old(caplog: pytest.LogCaptureFixture) -> None:
    wall, monotonic = [1_000_000.0], [50.0]
    clock = WallClock(lambda: wall[0], lambda: monotonic[0])

    def later(seconds: float, jump: float = 0.0) -> bool:
        wall[0] += seconds + jump
        monotonic[0] += seconds
        return clock.is_trusted()

    assert later(600)
    # A leap, a daylight saving of a broken system, a battery that was empty.
    assert later(600, jump=1.0)
    assert not later(600, jump=40 * 365 * 86_400)
    assert "the clock jumped by 1261440000 s" in caplog.text
    assert not later(3600)
    assert not later(3600, jump=-40 * 365 * 86_400)
    assert later(86_400 + 1)


def test_a_statistic_that_is_no_number_holds_up_no_row(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "q.db"), None)
    store.add([entry(statistics={"blur": float("nan"), "noise": float("inf"), "near": 0.5})])
    assert store.find()[0].statistics == {"near": 0.5}
    store.close()


def test_by_size_alone_a_sweep_keeps_what_is_old(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "q.db"), None)
    store.add([entry()])
    assert store.sweep(Limits(bytes=10**9, days=-1), by_age=False) == 0
    assert store.sweep(Limits(bytes=10**9, days=-1)) == 1
    store.close()
