"""Stores, fingerprints and the monitor that counts similar queries."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from firewall_plugins.monitors.fingerprints import Pixels, reduced
from firewall_plugins.monitors.query_similarity import QuerySimilarity

from firewall.bundle.spec import InputSpec
from firewall.errors import (
    ConfigError,
    PluginBroken,
    PluginNotFound,
    SampleTooSmall,
    StateUnavailable,
)
from firewall.monitors import Seen, Store
from firewall.monitors.calibrate import calibrate
from firewall.monitors.memory import MemoryStore
from firewall.monitors.redis import RedisStore
from firewall.monitors.registry import MonitorRegistry
from firewall.monitors.streams import Habits, benign
from firewall.screening.policy import MonitorSpec, Policy
from firewall.screening.verdict import Answer, Decision, Verdict
from firewall.serve.query_monitors import Memory, Monitors
from tests.support.peers import free_ports
from tests.support.redis import Redis

SECRET = bytes(range(32))


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = Redis(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server.url
    server.stop()


@pytest.fixture(params=["memory", "redis"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    made: Store
    if request.param == "memory":
        made = MemoryStore()
    else:
        made = RedisStore(request.getfixturevalue("redis_url"), prefix=f"{time.time_ns()}")
    yield made
    made.close()


def test_lists_are_shared_by_key_the_latest_first_and_bounded(store: Store) -> None:
    def exchange(*keys: int, value: int) -> list[tuple[int, ...]]:
        return store.exchange(keys, value, seconds=60, most=3)

    assert exchange(1, 2, value=10) == [(), ()]
    assert exchange(2, 3, value=2**64 - 1) == [(10,), ()]
    assert exchange(2, value=10) == [(2**64 - 1, 10)]
    assert exchange(2, value=11) == [(2**64 - 1, 10)]
    assert exchange(2, value=12) == [(11, 2**64 - 1, 10)]
    assert exchange(2, 1, 0, value=13) == [(12, 11, 2**64 - 1), (10,), ()]


@pytest.fixture
def another_redis(tmp_path: Path) -> Iterator[Callable[..., Redis]]:
    started: list[Redis] = []

    def start(*options: str) -> Redis:
        server = Redis(tmp_path, *options)
        started.append(server)
        server.start()
        return server

    yield start
    for one in started:
        one.stop()


def test_a_replica_is_refused_at_the_start(
    redis_url: str, another_redis: Callable[..., Redis]
) -> None:
    port = redis_url.rpartition(":")[2].partition("/")[0]
    store = RedisStore(another_redis("--replicaof", "127.0.0.1", port).url)
    with pytest.raises(ConfigError, match="is a replica, which cannot be written"):
        store.check()
    store.close()


def test_a_missing_or_wrong_password_is_said_without_it(
    another_redis: Callable[..., Redis],
) -> None:
    server = another_redis("--requirepass", "hunter2")
    for user in ("", ":wrong-secret@"):
        store = RedisStore(server.url.replace("//", f"//{user}"))
        with pytest.raises(ConfigError, match="refuses the password, or wants one") as caught:
            store.check()
        assert "secret" not in str(caught.value)
        store.close()
    store = RedisStore(server.url.replace("//", "//:hunter2@"))
    store.check()
    store.close()


def test_a_cluster_is_found_out_and_used(another_redis: Callable[..., Redis]) -> None:
    """Two nodes with half of the slots each: whichever the URL names, keys lie on one of them."""
    import redis

    # Ten thousand above its port by default, which may be more than there are.
    buses = free_ports(2)
    nodes = [
        another_redis(
            "--cluster-enabled", "yes", "--cluster-config-file", f"{bus}.conf",
            "--cluster-port", str(bus),
        )
        for bus in buses
    ]  # fmt: skip
    clients = [redis.Redis(port=node.port) for node in nodes]
    clients[0].execute_command("CLUSTER ADDSLOTSRANGE 0 8191")
    clients[1].execute_command("CLUSTER ADDSLOTSRANGE 8192 16383")
    clients[0].execute_command("CLUSTER MEET 127.0.0.1", nodes[1].port, buses[1])
    for _ in range(200):
        told = [client.execute_command("CLUSTER INFO") for client in clients]
        if all(one["cluster_state"] == "ok" and one["cluster_known_nodes"] == "2" for one in told):
            break
        time.sleep(0.05)
    values = []
    for number, node in enumerate(nodes):
        store = RedisStore(node.url, timeout=2.0)
        store.check()
        values.append(store.exchange([1, 2, 3], 10 + number, seconds=60, most=3))
        store.close()
    # What one replica of ours has told, another one knows, by way of the other node.
    assert values == [[(), (), ()], [(10,), (10,), (10,)]]
    for client in clients:
        client.close()


def test_redis_forgets_in_time(redis_url: str) -> None:
    store = RedisStore(redis_url, prefix="short")
    store.exchange([1], 10, seconds=0.2, most=3)
    assert store.exchange([1], 11, seconds=0.2, most=3) == [(10,)]
    time.sleep(0.4)
    assert store.exchange([1], 12, seconds=0.2, most=3) == [()]
    store.close()


def test_a_store_that_is_down_says_so() -> None:
    store = RedisStore(f"redis://127.0.0.1:{free_ports(1)[0]}/0")
    with pytest.raises(StateUnavailable, match="Redis cannot be asked"):
        store.exchange([1], 1, seconds=1, most=1)
    with pytest.raises(StateUnavailable, match="Redis cannot be asked"):
        store.check()
    with pytest.raises(ConfigError, match="expected redis://"):
        RedisStore("http://localhost")


def test_memory_forgets_in_time_and_keeps_what_is_asked_for() -> None:
    clock = Clock()
    store = MemoryStore(clock=clock)

    def exchange(key: int, value: int) -> tuple[int, ...]:
        [found] = store.exchange([key], value, seconds=100, most=8)
        return found

    exchange(1, 10)
    exchange(2, 20)
    clock.now += 49
    assert exchange(1, 11) == (10,)
    for value in (12, 13, 14):
        clock.now += 51
        assert exchange(1, value)[0] == value - 1
    assert exchange(2, 21) == ()
    clock.now += 151
    assert exchange(1, 15) == ()
    # What is to be remembered for longer is.
    store.exchange([3], 30, seconds=10_000, most=8)
    clock.now += 151
    exchange(1, 16)
    assert store.exchange([3], 31, seconds=10_000, most=8) == [(30,)]


def test_memory_is_bounded() -> None:
    store = MemoryStore(1000)
    for key in range(20_000):
        store.exchange([key], 1, seconds=1e6, most=8)
        assert len(store) <= 1001
    assert store.exchange([19_999], 2, seconds=1e6, most=8) == [(1,)]


def images(rows: int, seed: int, side: int = 28) -> np.ndarray[Any, Any]:
    """Smooth blobs on black, as little alike as pictures are."""
    rng = np.random.default_rng(seed)
    grid = np.linspace(0, 1, side)
    y, x = np.meshgrid(grid, grid, indexing="ij")
    found = np.zeros((rows, 1, side, side), np.float32)
    for row in range(rows):
        for _ in range(4):
            cy, cx, size = rng.uniform((0.1, 0.1, 0.05), (0.9, 0.9, 0.2))
            found[row, 0] += np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * size**2)) * rng.random()
    return found.clip(0, 1)


def outputs(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A smooth classifier of ten classes."""
    rng = np.random.default_rng(0)
    logits = x.reshape(len(x), -1) @ rng.standard_normal((x[0].size, 10)) * 0.5
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    found: np.ndarray[Any, Any] = logits.astype(np.float32)
    return found


def monitor(store: Store | None = None, **config: Any) -> QuerySimilarity:
    made = QuerySimilarity.Config(**config)
    return QuerySimilarity(made, MemoryStore() if store is None else store, SECRET)


def scores(one: QuerySimilarity, x: np.ndarray[Any, Any], client: str = "a") -> list[float]:
    return one.observe(Seen(client, x, outputs(x))).tolist()


@pytest.mark.parametrize("fingerprint", ["pixels", "outputs", "thumbnail"])
def test_small_steps_are_counted_and_other_images_and_repetitions_are_not(
    fingerprint: str, store: Store
) -> None:
    width = {"pixels": 1.0, "outputs": 4.0, "thumbnail": 0.5}[fingerprint]
    one = monitor(store, fingerprint=fingerprint, width=width)
    assert max(scores(one, images(60, 1))) <= 2
    x = images(1, 2)
    assert [scores(one, x)[0] for _ in range(5)] == [0.0] * 5
    rng = np.random.default_rng(3)
    walk = []
    for _ in range(30):
        # A square of pixels, as the attack of that name has it.
        top, left = rng.integers(0, 24, 2)
        x[0, 0, top : top + 4, left : left + 4] += rng.choice([-0.03, 0.03])
        walk.append(scores(one, x.clip(0, 1))[0])
    assert walk[-1] >= 20
    assert walk == sorted(walk) or max(walk) >= 20
    # Somebody else's requests are somebody else's.
    assert scores(one, x.clip(0, 1), "b") == [0.0]


def test_everyone_is_one_client_where_the_scope_says_so() -> None:
    one = monitor(scope="everyone")
    x = np.repeat(images(1, 2), 20, axis=0)
    x[:, 0, 0, 0] = np.linspace(0.2, 0.9, 20)
    found = [scores(one, x[n : n + 1], f"client {n}")[0] for n in range(20)]
    assert found[-1] >= 15


def test_a_batch_is_as_good_as_its_rows_one_by_one() -> None:
    x = np.repeat(images(2, 2), 5, axis=0)
    x[:, 0, 0, 0] = np.linspace(0.2, 0.9, 10)
    whole = scores(monitor(), x)
    single, one = [], monitor()
    for row in range(10):
        single += scores(one, x[row : row + 1])
    assert whole == single
    assert whole[4] >= 3


def test_nobody_without_the_secret_foresees_the_hashes() -> None:
    x = images(1, 1)
    [first], [again] = (Pixels(SECRET)(x, None) for _ in range(2))
    [other] = Pixels(bytes(32))(x, None)
    assert set(first.tolist()) == set(again.tolist())
    assert not set(first.tolist()) & set(other.tolist())


@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (2, 3, 32, 32), (1, 3, 224, 224), (1, 1, 3, 2)])
def test_every_size_of_image_has_fingerprints(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).random(shape, np.float32)
    for fingerprint in ("pixels", "outputs", "thumbnail"):
        one = monitor(fingerprint=fingerprint, width=0.01)
        assert scores(one, x) == [0.0] * len(x)
        for flat in (np.zeros(shape, np.float32), np.ones(shape, np.float32)):
            assert scores(one, flat)[0] == 0.0


def test_blocks_are_means() -> None:
    x = np.arange(36, dtype=np.float32).reshape(1, 1, 6, 6)
    assert reduced(x, 3)[0, 0].tolist() == [[3.5, 5.5, 7.5], [15.5, 17.5, 19.5], [27.5, 29.5, 31.5]]
    assert reduced(x, 6) is x


# --- what becomes of scores ----------------------------------------------------------------------

SPEC = InputSpec(name="image", channels=1, height=28, width=28)


class Given:
    """A monitor that says what it is told to."""

    def __init__(self, found: Any) -> None:
        self.found = found
        self.seen: list[Seen] = []

    def observe(self, seen: Seen) -> Any:
        self.seen.append(seen)
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


class OneRegistry(MonitorRegistry):
    def __init__(self, made: Given) -> None:
        super().__init__({})
        self.made = made

    def build(self, *_: Any) -> Any:
        return self.made


def looked(
    policy: Policy,
    found: Any,
    p_values: list[float | None],
    verdict: Verdict = Verdict.ACCEPT,
) -> tuple[Answer, Given]:
    given = Given(found)
    memory = Memory(OneRegistry(given), MemoryStore(), SECRET, lambda client: f"<{client}>")
    answer = Answer(
        tuple(Decision(verdict, p_value=p) for p in p_values),
        np.zeros((len(p_values), 10), np.float32),
        np.zeros((len(p_values), 10), np.float32),
    )
    monitors = Monitors(policy, "m", SPEC, memory)
    return monitors.look(images(len(p_values), 1), answer, "c"), given


def policy(watches: bool = False, **others: Any) -> Policy:
    mode = "monitor" if watches else "enforce"
    spec = MonitorSpec(name="queries", plugin="query-similarity", threshold=5, mode=mode)
    return Policy(monitors=(spec,), **others)


def test_a_row_over_the_threshold_is_refused_with_the_monitors_name() -> None:
    answer, given = looked(policy(), [4.9, 5.0], [0.5, 0.5])
    assert [one.verdict for one in answer.decisions] == [Verdict.ACCEPT, Verdict.REJECT]
    assert answer.decisions[1].reasons == ("queries",)
    assert [one.statistics["queries"] for one in answer.decisions] == [4.9, 5.0]
    [seen] = given.seen
    assert seen.client == "<c>"
    assert np.allclose(np.exp(seen.outputs).sum(axis=1), 1)
    flagged, _ = looked(policy(mode="monitor"), [4.9, 5.0], [0.5, 0.5])
    assert flagged.decisions[1].verdict is Verdict.FLAG


def test_a_monitor_that_only_watches_refuses_nothing_and_takes_no_refusal_back() -> None:
    answer, _ = looked(policy(watches=True), [4.9, 5.0], [0.5, 0.5])
    assert [one.verdict for one in answer.decisions] == [Verdict.ACCEPT, Verdict.FLAG]
    assert answer.decisions[1].reasons == ("queries",)
    refused, _ = looked(policy(watches=True), [4.9, 5.0], [0.5, 0.5], Verdict.REJECT)
    assert [one.verdict for one in refused.decisions] == [Verdict.REJECT] * 2
    for found in ([1.0], StateUnavailable("down")):
        failed, _ = looked(policy(watches=True), found, [0.5, 0.5])
        assert [one.verdict for one in failed.decisions] == [Verdict.ACCEPT] * 2
        assert not any(one.fault for one in failed.decisions)


@pytest.mark.parametrize(
    "found", [[1.0], [1.0, np.nan], RuntimeError("down"), StateUnavailable("down")]
)
def test_a_monitor_that_fails_is_a_fault(found: Any) -> None:
    answer, _ = looked(policy(), found, [0.5, 0.5])
    assert [one.reasons for one in answer.decisions] == [("fault",)] * 2
    assert [one.verdict for one in answer.decisions] == [Verdict.REJECT] * 2
    passed, _ = looked(policy(on_fault="accept"), found, [0.5, 0.5])
    assert [one.verdict for one in passed.decisions] == [Verdict.ACCEPT] * 2


def test_what_is_not_screened_is_not_remembered() -> None:
    answer, given = looked(policy(), [9.0], [None, 0.5])
    assert [one.verdict for one in answer.decisions] == [Verdict.ACCEPT, Verdict.REJECT]
    assert len(given.seen[0].images) == 1
    for other in (
        policy(mode="off"),
        policy(exclusions=[{"id": "1", "client": "c"}]),
        policy(exclusions=[{"id": "1", "detector": "queries", "client": "c"}]),
    ):
        answer, given = looked(other, [9.0, 9.0], [0.5, 0.5])
        assert [one.verdict for one in answer.decisions] == [Verdict.ACCEPT] * 2
        assert given.seen == []


def test_settings_that_cannot_be_are_named() -> None:
    registry = MonitorRegistry.discover()
    assert "query-similarity" in registry.names()
    assert [line.error for line in registry.report()] == [None] * len(registry.names())
    with pytest.raises(PluginNotFound, match="monitor 'other' is not installed"):
        registry.load("other")
    with pytest.raises(ConfigError, match="key 'window'"):
        registry.build("query-similarity", {"window": 3}, MemoryStore(), SECRET)
    with pytest.raises(ConfigError, match="two monitors have the same name"):
        Policy.parse(2 * "[[monitors]]\nname='a'\nplugin='query-similarity'\nthreshold=3\n")


class NoVersion:
    Config = QuerySimilarity.Config

    def observe(self, seen: Seen) -> Any: ...


class OtherConfig(QuerySimilarity):
    Config = dict  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("NoVersion", "api_version None"),
        ("OtherConfig", "no Config that derives"),
        ("SECRET", "not a class with observe"),
        ("Missing", "cannot be imported: AttributeError"),
    ],
)
def test_a_plugin_that_breaks_the_contract_is_named(name: str, words: str) -> None:
    from importlib.metadata import EntryPoint

    entry = EntryPoint(name="bad", value=f"{__name__}:{name}", group="firewall.monitors")
    registry = MonitorRegistry({"bad": entry})
    with pytest.raises(PluginBroken, match=words):
        registry.load("bad")
    assert registry.report()[0].error


def test_the_key_file_is_made_once(tmp_path: Path) -> None:
    from firewall.quarantine.key import pseudonym_key

    assert pseudonym_key(tmp_path / "state.key") == pseudonym_key(tmp_path / "state.key")


# --- calibration ---------------------------------------------------------------------------------


def looked_at(pixels: np.ndarray[Any, Any]) -> tuple[Any, Any]:
    x = (pixels.transpose(0, 3, 1, 2) / 255).astype(np.float32)
    return x, outputs(x)


def clean(rows: int, seed: int) -> np.ndarray[Any, Any]:
    found: np.ndarray[Any, Any] = np.rint(images(rows, seed) * 255).astype(np.uint8)
    return found.transpose(0, 2, 3, 1)


@pytest.mark.parametrize("fingerprint", ["pixels", "thumbnail"])
def test_a_calibrated_monitor_keeps_its_promise_on_another_stream(fingerprint: str) -> None:
    registry = MonitorRegistry.discover()
    found = calibrate(
        registry, "query-similarity", {"fingerprint": fingerprint}, clean(300, 5), looked_at,
        rate=0.01, count=1500, habits=Habits(clients=5),
    )  # fmt: skip
    assert sum(found.requests.values()) == 1500
    assert set(found.requests) == {"new", "again", "resaved", "frame"}
    assert sum(found.alarms.values()) <= 15
    # Clips would be refused if they did not count as clean.
    assert found.threshold >= 3
    one = registry.build("query-similarity", found.config, MemoryStore(), SECRET)
    alarms = 0
    stream = benign(clean(300, 6), 1000, Habits(clients=5), np.random.default_rng(1))
    for request in stream:
        x, out = looked_at(request.pixels[None])
        alarms += int(one.observe(Seen(request.client, x, out))[0] >= found.threshold)
    assert alarms <= 40


def test_so_few_requests_promise_nothing() -> None:
    with pytest.raises(SampleTooSmall, match=r"100 cannot promise 0\.001; expected at least 1000"):
        calibrate(
            MonitorRegistry.discover(), "query-similarity", {}, clean(10, 5), looked_at, count=100
        )


def test_a_stream_is_what_its_habits_say() -> None:
    habits = Habits(again=0.2, resaved=0.1, videos=0.05, frames=4.0, clients=3)
    pictures = clean(40, 5)
    stream = list(benign(pictures, 1000, habits, np.random.default_rng(0)))
    share = {kind: sum(one.kind == kind for one in stream) / 1000 for kind in
             ("new", "again", "resaved", "frame")}  # fmt: skip
    assert 0.1 < share["again"] < 0.3
    assert 0.04 < share["resaved"] < 0.15
    assert 0.05 < share["frame"] < 0.4
    new = [one for one in stream if one.kind == "new"]
    assert np.array_equal(new[0].pixels, pictures[0])
    # The second lap is somebody else's.
    assert {one.client.partition("-")[0] for one in new[:40]} == {"0"}
    assert not {one.client for one in new[:40]} & {one.client for one in new[40:80]}
