"""The laws that every registered monitor is tested against; for yours as well.

::

    @pytest.mark.parametrize("law", MONITOR_LAWS)
    def test_law(law):
        MONITOR_LAWS[law](MyMonitor)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from firewall.monitors.contract import Floats, MonitorPlugin, Seen
from firewall.monitors.memory import MemoryStore
from firewall.monitors.store import Store

_SECRET = bytes(range(32))
#: Channels, height and width of images that laws are tried on.
_SHAPES = ((1, 8, 8), (3, 32, 32), (3, 97, 61))
_CLASSES = 10


def _seen(images: npt.NDArray[np.float32], client: str = "a", classes: int = _CLASSES) -> Seen:
    """Images, and outputs that depend on each of them alone."""
    weights = np.random.default_rng(0).standard_normal((images[0].size, classes))
    logits = images.reshape(len(images), -1) @ weights / images[0].size ** 0.5
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return Seen(client, images, logits.astype(np.float32))


def _walk(count: int, shape: tuple[int, int, int], seed: int) -> npt.NDArray[np.float32]:
    """Images that differ by little from one to the next, and an unlike one after every fourth."""
    rng = np.random.default_rng(seed)
    now = rng.random(shape, np.float32)
    found = []
    for number in range(count):
        if number % 4 == 3:
            found.append(rng.random(shape, np.float32))
            continue
        now = now.copy()
        now[:, rng.integers(shape[1]), rng.integers(shape[2])] = rng.random()
        found.append(now)
    return np.stack(found).astype(np.float32)


def _make(plugin: MonitorPlugin, store: Store | None = None) -> Callable[[Seen], Floats]:
    made = plugin(plugin.Config(), MemoryStore() if store is None else store, _SECRET)
    return made.observe


def finite(plugin: MonitorPlugin) -> None:
    """One finite score a row, for any size of image, black, white and noise."""
    for shape in _SHAPES:
        observe = _make(plugin)
        for images in (
            np.zeros((2, *shape), np.float32),
            np.ones((1, *shape), np.float32),
            np.random.default_rng(1).random((5, *shape), np.float32),
        ):
            scores = np.asarray(observe(_seen(images)))
            assert scores.shape == (len(images),), f"{scores.shape} for {len(images)} rows"
            assert np.isfinite(scores).all(), f"not finite on {shape}"


def inputs_unchanged(plugin: MonitorPlugin) -> None:
    """What it is given stays what it is."""
    seen = _seen(_walk(6, (3, 32, 32), 2))
    images, outputs = seen.images.copy(), seen.outputs.copy()
    _make(plugin)(seen)
    assert np.array_equal(seen.images, images), "it changed the images"
    assert np.array_equal(seen.outputs, outputs), "it changed the outputs"


def rows_in_order(plugin: MonitorPlugin) -> None:
    """A request of several rows is as good as several requests of one."""
    images = _walk(12, (3, 32, 32), 3)
    whole = np.asarray(_make(plugin)(_seen(images)))
    observe = _make(plugin)
    single = np.concatenate([observe(_seen(images[n : n + 1])) for n in range(len(images))])
    assert np.array_equal(whole, single), f"{whole.tolist()} and {single.tolist()}"


def state_in_the_store(plugin: MonitorPlugin) -> None:
    """One that is made anew goes on where the one before was: a policy may change at any time."""
    images = _walk(16, (3, 32, 32), 4)
    whole = np.asarray(_make(plugin)(_seen(images)))
    store = MemoryStore()
    parts = [_make(plugin, store)(_seen(images[n : n + 4])) for n in range(0, 16, 4)]
    assert np.array_equal(whole, np.concatenate(parts)), "something is remembered elsewhere"


def deterministic(plugin: MonitorPlugin) -> None:
    """The same requests, the same scores: replicas agree."""
    images = _walk(12, (3, 32, 32), 5)
    first, second = (np.asarray(_make(plugin)(_seen(images))) for _ in range(2))
    assert np.array_equal(first, second), f"{first.tolist()} and {second.tolist()}"


def config_round_trip(plugin: MonitorPlugin) -> None:
    """A configuration survives JSON."""
    config = plugin.Config()
    again = plugin.Config.model_validate_json(config.model_dump_json())
    assert again == config, f"{again} is not {config}"


def unknown_key_refused(plugin: MonitorPlugin) -> None:
    """A key that is none is a mistake, and is said."""
    try:
        plugin.Config.model_validate({"no_such_key": 1})
    except ValidationError:
        return
    raise AssertionError("an unknown key was taken")


MONITOR_LAWS: Mapping[str, Callable[[MonitorPlugin], None]] = {
    law.__name__: law
    for law in (
        finite, inputs_unchanged, rows_in_order, state_in_the_store, deterministic,
        config_round_trip, unknown_key_refused,
    )
}  # fmt: skip
