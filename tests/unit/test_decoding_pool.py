from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firewall.bundle.spec import InputSpec, Preprocessing
from firewall.decoding.budget import Budget
from firewall.decoding.decode import Target, decode_image, plan_decoding
from firewall.decoding.pool import DecodingPool
from firewall.errors import Cancelled, DeadlineExceeded, InvalidInput, NotReady, Overloaded
from tests.support.image_files import bomb, encoded, many_scans

SPEC = InputSpec(channels=3, height=8, width=8)
RESIZE = Preprocessing(resize=10)
GOOD = encoded(40, 30, "JPEG")
#: Says that it was started, then never answers.
STUCK = "import os, sys, time; open(sys.argv[1], 'a').write(f'{os.getpid()}\\n'); time.sleep(600)"
#: Takes the request and ends.
CRASH = "import socket; socket.socket(fileno=0).recv(1 << 20)"
#: Answers what no decoder answers.
LIAR = "import socket; s = socket.socket(fileno=0); s.recv(1 << 20); s.sendall(b'\\1' * 100)"
#: The real thing on the second start.
CRASH_ONCE = (
    "import os, sys, socket\n"
    "if not os.path.exists(sys.argv[1]):\n"
    "    open(sys.argv[1], 'w').close(); socket.socket(fileno=0).recv(1 << 20); sys.exit()\n"
    "from firewall.decoding.worker import main; main(['268435456', '60'])\n"
)


def nothing() -> None:
    pass


def decode(
    pool: DecodingPool,
    *images: bytes,
    deadline: float | None = None,
    check: Callable[[], None] = nothing,
) -> np.ndarray[Any, Any]:
    return pool.decode(images, SPEC, RESIZE, field="images", deadline=deadline, check=check)


def child(code: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", code, *map(str, arguments)]


def started(path: Path) -> int:
    """Wait for a STUCK child: its process id."""
    while not path.exists() or not path.read_text().endswith("\n"):
        time.sleep(0.01)
    return int(path.read_text().split()[-1])


def wait_until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.01)


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class Background:
    """A call in a thread; what it raised."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(call,))
        self._thread.start()

    def _run(self, call: Callable[[], object]) -> None:
        try:
            call()
        except BaseException as error:
            self.error = error

    def join(self) -> BaseException | None:
        self._thread.join()
        return self.error


@pytest.fixture
def make() -> Iterator[Callable[..., DecodingPool]]:
    pools: list[DecodingPool] = []

    def build(**options: Any) -> DecodingPool:
        pools.append(DecodingPool(**options))
        return pools[-1]

    yield build
    for pool in pools:
        pool.close()


Make = Callable[..., DecodingPool]


@pytest.mark.parametrize("inline", [0.0, 100.0])
def test_images_are_decoded_as_decode_image_does(inline: float, make: Make) -> None:
    images = [GOOD, encoded(50, 20), encoded(8, 8, "WEBP")]
    pixels = decode(make(inline_seconds=inline), *images)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, [decode_image(data, SPEC, RESIZE) for data in images])


@pytest.mark.parametrize("inline", [0.0, 100.0])
def test_refusal_names_the_row(inline: float, make: Make) -> None:
    damaged = bytearray(encoded(64, 64))
    damaged[60:80] = bytes(20)
    with pytest.raises(InvalidInput, match="damaged") as caught:
        decode(make(inline_seconds=inline), GOOD, bytes(damaged))
    assert caught.value.field == "images[1]"
    assert str(caught.value).startswith("images[1]: ")


def test_cheap_images_start_no_child(make: Make) -> None:
    pool = make(worker=child(CRASH))
    assert decode(pool, GOOD).shape == (1, 8, 8, 3)
    with pytest.raises(InvalidInput, match="ended before it was done"):
        decode(pool, many_scans(2000, 2000, 20))


def test_a_child_is_used_again_and_ends_when_idle(make: Make, tmp_path: Path) -> None:
    log = tmp_path / "started"
    code = (
        "import os, sys; open(sys.argv[1], 'a').write(f'{os.getpid()}\\n')\n"
        "from firewall.decoding.worker import main; main(['268435456', '0.3'])\n"
    )
    pool = make(inline_seconds=0, idle_seconds=60, worker=child(code, log))
    for _ in range(3):
        decode(pool, GOOD)
    [pid] = map(int, log.read_text().split())
    wait_until(lambda: not exists(pid))
    # And the next image starts another.
    decode(pool, GOOD)
    assert len(log.read_text().split()) == 2


@pytest.mark.parametrize("code", [CRASH, LIAR, "pass"])
def test_a_crash_is_the_error_of_its_request_only(code: str, make: Make) -> None:
    pool = make(inline_seconds=0, worker=child(code))
    for _ in range(3):
        with pytest.raises(InvalidInput, match="ended before it was done") as caught:
            decode(pool, GOOD)
        assert caught.value.field == "images[0]"


def test_a_crashed_child_is_replaced(make: Make, tmp_path: Path) -> None:
    pool = make(inline_seconds=0, worker=child(CRASH_ONCE, tmp_path / "crashed"))
    with pytest.raises(InvalidInput, match="ended before it was done"):
        decode(pool, GOOD)
    assert np.array_equal(decode(pool, GOOD)[0], decode_image(GOOD, SPEC, RESIZE))


def test_a_killed_child_is_the_error_of_its_request(make: Make, tmp_path: Path) -> None:
    pool = make(inline_seconds=0, worker=child(STUCK, tmp_path / "pid"))
    call = Background(lambda: decode(pool, GOOD))
    os.kill(started(tmp_path / "pid"), 9)
    assert isinstance(call.join(), InvalidInput)


def test_the_child_is_killed_at_the_deadline(make: Make, tmp_path: Path) -> None:
    pool = make(inline_seconds=0, worker=child(STUCK, tmp_path / "pid"))
    with pytest.raises(DeadlineExceeded):
        decode(pool, GOOD, deadline=time.monotonic() + 0.5)
    pid = started(tmp_path / "pid")
    wait_until(lambda: not exists(pid))


def test_the_child_is_killed_after_the_timeout(make: Make, tmp_path: Path) -> None:
    pool = make(inline_seconds=0, decoding_timeout=0.5, worker=child(STUCK, tmp_path / "pid"))
    with pytest.raises(Overloaded, match=r"not decoded within 0\.5 s") as caught:
        decode(pool, GOOD)
    assert caught.value.retry_after > 0
    pid = started(tmp_path / "pid")
    wait_until(lambda: not exists(pid))


def test_the_child_is_killed_when_the_caller_is_gone(make: Make, tmp_path: Path) -> None:
    pool = make(inline_seconds=0, worker=child(STUCK, tmp_path / "pid"))

    def check() -> None:
        if (tmp_path / "pid").exists():
            raise Cancelled("the client is gone")

    with pytest.raises(Cancelled):
        decode(pool, GOOD, check=check)
    pid = started(tmp_path / "pid")
    wait_until(lambda: not exists(pid))


def test_waiting_for_a_process_ends(make: Make, tmp_path: Path) -> None:
    pool = make(
        inline_seconds=0, decoding_processes=1, max_wait=0.2,
        worker=child(STUCK, tmp_path / "pid"),
    )  # fmt: skip
    call = Background(lambda: decode(pool, GOOD))
    started(tmp_path / "pid")
    with pytest.raises(Overloaded, match="too many images") as caught:
        decode(pool, GOOD)
    assert caught.value.retry_after == 0.2
    with pytest.raises(DeadlineExceeded):
        decode(pool, GOOD, deadline=time.monotonic() + 0.1)
    pool.close()
    assert isinstance(call.join(), NotReady)


def test_waiting_for_memory_ends(make: Make, tmp_path: Path) -> None:
    """A costly image holds the bytes; a cheap one finds none left."""
    large = encoded(500, 500)
    needed = plan_decoding(large, Target.of(SPEC, RESIZE), field="x").needed_bytes
    pool = make(
        inline_seconds=0.005, decoding_memory=needed * 3 // 2, max_wait=0.2, decoding_processes=2,
        worker=child(STUCK, tmp_path / "pid"),
    )  # fmt: skip
    call = Background(lambda: decode(pool, large))
    started(tmp_path / "pid")
    assert decode(pool, GOOD).shape == (1, 8, 8, 3)
    with pytest.raises(Overloaded, match="too many images"):
        decode(pool, large)
    with pytest.raises(DeadlineExceeded):
        decode(pool, large, deadline=time.monotonic() + 0.1)
    pool.close()
    assert isinstance(call.join(), NotReady)


def test_an_image_over_the_whole_budget_is_refused(make: Make) -> None:
    pool = make(decoding_memory=1 << 20)
    with pytest.raises(
        InvalidInput, match=r"500 x 500 pixels need \d MiB to decode; at most 1 MiB"
    ):
        decode(pool, encoded(500, 500))


def test_hostile_headers_start_nothing(make: Make) -> None:
    pool = make(inline_seconds=0, worker=child(CRASH))
    for data, words in (
        (bomb(), "at most 25000000 are decoded"),
        (many_scans(2000, 2000, 400), "410 scans"),
        (bomb(5000, bits=8, colour=6)[:-3], "damaged or truncated"),
    ):
        # A good row in front of it is not decoded either.
        with pytest.raises(InvalidInput, match=words) as caught:
            decode(pool, GOOD, data)
        assert caught.value.field == "images[1]"


def test_memory_of_the_child_is_bounded() -> None:
    """The limit holds whatever the estimate said."""
    code = (
        "from firewall.decoding.worker import confine\n"
        "confine(50 << 20)\n"
        "bytearray(20 << 20)\n"
        "try: bytearray(100 << 20)\n"
        "except MemoryError: print('bounded')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "bounded\n"


def test_the_child_has_no_descriptors_environment_or_heavy_imports(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIREWALL_TOKEN", "secret")
    out = tmp_path / "out"
    code = (
        "import os, sys\n"
        "import firewall.decoding.worker\n"
        "heavy = {'pydantic', 'grpc', 'onnxruntime', 'torch'} & set(sys.modules)\n"
        "sockets = 0\n"
        "for fd in range(100):\n"
        "    try: sockets += os.readlink(f'/proc/self/fd/{fd}').startswith('socket:')\n"
        "    except OSError: pass\n"
        "with open(sys.argv[1], 'w') as file:\n"
        "    file.write(f'{sorted(heavy)} {sockets} {\"FIREWALL_TOKEN\" in os.environ}')\n"
    )
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.set_inheritable(True)
        with pytest.raises(InvalidInput):
            decode(make(inline_seconds=0, worker=child(code, out)), GOOD)
    assert out.read_text() == "[] 1 False"


def test_closed_pool_says_so(make: Make) -> None:
    pool = make()
    pool.close()
    pool.close()
    with pytest.raises(NotReady, match="shutting down"):
        decode(pool, GOOD)


def test_many_threads_share_a_pool(make: Make) -> None:
    pool = make(inline_seconds=0, decoding_processes=2, max_wait=60)
    images = [encoded(20 + number, 30, "JPEG") for number in range(12)]
    results: dict[int, np.ndarray[Any, Any]] = {}

    def one(number: int) -> None:
        results[number] = decode(pool, images[number])[0]

    calls = [Background(lambda number=number: one(number)) for number in range(12)]  # type: ignore[misc]
    assert [call.join() for call in calls] == [None] * 12
    for number, data in enumerate(images):
        assert np.array_equal(results[number], decode_image(data, SPEC, RESIZE))


def test_budget_is_first_come_first_served() -> None:
    budget = Budget(10)
    order: list[int] = []

    def take(amount: int) -> None:
        budget.take(amount, until=time.monotonic() + 60, check=nothing)
        order.append(amount)
        budget.give(amount)

    budget.take(8, until=0, check=nothing)
    calls = []
    for place, amount in enumerate((9, 1, 2), start=1):
        calls.append(Background(lambda amount=amount: take(amount)))  # type: ignore[misc]
        wait_until(lambda place=place: budget.waiting == place)  # type: ignore[misc]
    # Two are free and one would do for the second, but the first has waited for longer.
    assert (order, budget.free) == ([], 2)
    budget.give(8)
    for call in calls:
        assert call.join() is None
    assert order[0] == 9
    assert budget.free == 10


def test_budget_does_not_hold_a_place_for_who_left() -> None:
    budget = Budget(10)
    budget.take(8, until=0, check=nothing)
    with pytest.raises(TimeoutError):
        budget.take(5, until=time.monotonic() + 0.1, check=nothing)

    def gone() -> None:
        raise Cancelled("the client is gone")

    with pytest.raises(Cancelled):
        budget.take(5, until=time.monotonic() + 60, check=gone)
    assert budget.waiting == 0
    budget.take(2, until=0, check=nothing)
    assert budget.free == 0
