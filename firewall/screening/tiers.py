"""One pass through a tier: as one graph, or in pieces that keep the classifier's weights once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from firewall.screening.graph_limits import rows_of_pass
from firewall.screening.graph_split import Cut, Piece, cut
from firewall.screening.session import Device, open_session

Array = npt.NDArray[Any]
Feed = Mapping[str, Array]

_UNBOUNDED = 1 << 30


class Tiers(Protocol):
    """Passes through two tiers.

    Attributes:
        cheap_outputs: names of what the cheap tier gives, in order.
        has_expensive: whether there is a second tier.
        rows_at_once: of one pass, at most.
        provider: of onnxruntime, by which they are run.

    """

    cheap_outputs: tuple[str, ...]
    has_expensive: bool
    rows_at_once: int
    provider: str

    def cheap(self, feed: Feed) -> list[Array]:
        """What the first gives for `wire`."""

    def expensive(self, feed: Feed) -> list[Array]:
        """What the second gives for `wire`, `logits` and the features that the first hands on."""


def open_tiers(graphs: Mapping[str, bytes], threads: int, device: Device, worth: int) -> Tiers:
    """Open `cheap.onnx` and, if there is one, `expensive.onnx`.

    Args:
        graphs: by name.
        threads: of one inference; 0 is one a core.
        device: where to run. Only on a processor are graphs cut: elsewhere all views in one pass
            are worth more than memory.
        worth: bytes of weights in both, from which on they are kept once.

    Raises:
        BundleMalformed: onnxruntime cannot load a graph.
        ConfigError: `device` is not to be had.

    """
    if device == "cpu" and "expensive.onnx" in graphs:
        found = cut(graphs["cheap.onnx"], graphs["expensive.onnx"], worth)
        if found is not None:
            return _Pieces(found, threads)
    return _Whole(graphs, threads, device)


class _Whole:
    """One graph a tier."""

    def __init__(self, graphs: Mapping[str, bytes], threads: int, device: Device) -> None:
        # A certificate is about what answers: that must not compute with fewer bits either.
        exact = "certificate.onnx" in graphs
        first, *more = (
            open_session(name, graphs[name], threads, device, exact=exact)
            for name in ("cheap.onnx", "expensive.onnx")
            if name in graphs
        )
        self._cheap, self._expensive = first, more[0] if more else None
        self.cheap_outputs = tuple(one.name for one in first.get_outputs())
        self.has_expensive = bool(more)
        self.rows_at_once = _rows_at_once(first) if device == "cpu" else _UNBOUNDED
        self.provider: str = first.get_providers()[0]

    def cheap(self, feed: Feed) -> list[Array]:
        return self._cheap.run(None, feed)  # type: ignore[no-any-return]

    def expensive(self, feed: Feed) -> list[Array]:
        assert self._expensive is not None
        return self._expensive.run(None, feed)  # type: ignore[no-any-return]


class _Pieces:
    """The classifier of the cheap tier does its part of the expensive one as well."""

    has_expensive = True

    def __init__(self, parts: Cut, threads: int) -> None:
        def opened(name: str, piece: Piece) -> ort.InferenceSession:
            return open_session(name, piece.graph, threads, "cpu")

        # Names alone: of the graphs the sessions have what they need.
        self._image, self._images, self._seen = parts.image, parts.images, parts.seen
        self._early, self._made = parts.before.inputs, parts.before.outputs
        self._late = parts.after.inputs
        self._front = opened("cheap.onnx", parts.front)
        self._body = opened("cheap.onnx", parts.body)
        self._before = opened("expensive.onnx", parts.before)
        self._after = opened("expensive.onnx", parts.after)
        self.cheap_outputs = parts.body.outputs
        self.rows_at_once = _rows_at_once(self._body)
        self.provider: str = self._body.get_providers()[0]

    def cheap(self, feed: Feed) -> list[Array]:
        [image] = self._front.run(None, feed)
        return self._body.run(None, {self._image: image})  # type: ignore[no-any-return]

    def expensive(self, feed: Feed) -> list[Array]:
        early = self._before.run(None, {name: feed[name] for name in self._early})
        given = {**feed, **dict(zip(self._made, early, strict=True))}
        images, most = given[self._images], self.rows_at_once
        given[self._seen] = np.concatenate(
            [
                self._body.run(["logits"], {self._image: images[at : at + most]})[0]
                for at in range(0, len(images), most)
            ]
        )
        return self._after.run(None, {name: given[name] for name in self._late})  # type: ignore[no-any-return]


def _rows_at_once(session: ort.InferenceSession) -> int:
    [shape] = [one.shape for one in session.get_inputs()]
    values = math.prod(size for size in shape[1:] if isinstance(size, int))
    return rows_of_pass(values)
