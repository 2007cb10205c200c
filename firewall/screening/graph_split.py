"""Two tiers hold the same classifier: cut so that its weights are there once.

The graph of the expensive tier is made of what comes before the classifier (the views), the
classifier, and what comes after. Where the graph of the cheap tier holds the same nodes with the
same weights, it can do that middle part as well. Nothing is computed in another way: the pieces are
the nodes of the two graphs, as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from firewall.wire import onnx_subset_pb2 as subset

#: Bytes of weights for which a graph is cut: of fewer, another pass costs more than they do.
WORTH = 4 << 20
_LOGITS = "logits"
#: How often what is common is made smaller before there is nothing to be cut.
_TRIES = 8


@dataclass(frozen=True)
class Piece:
    """A graph, and the names of what goes in and comes out, in order."""

    graph: bytes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Cut:
    """Two tiers in pieces.

    Attributes:
        front: the wire to `image`.
        body: `image` to what the cheap tier gives.
        before: what the expensive tier takes to `images`, and what `after` needs of it.
        after: that, and `seen`, to what the expensive tier gives.
        image: name of what the classifier sees.
        images: name of what it sees in the expensive tier, any number of rows.
        seen: name of the logits that it gives for these.

    """

    front: Piece
    body: Piece
    before: Piece
    after: Piece
    image: str
    images: str
    seen: str


def cut(cheap: bytes, expensive: bytes, worth: int = WORTH) -> Cut | None:
    """Cut two tiers; None where they are not as said above, or share too little.

    Args:
        cheap: ONNX graph of that tier; one output is `logits`.
        expensive: of the other.
        worth: bytes of weights that they must share.

    """
    try:
        models = subset.Model.FromString(cheap), subset.Model.FromString(expensive)
    except DecodeError:
        # Whoever opens them says so.
        return None
    first, second = _Graph(models[0]), _Graph(models[1])
    if not (first.plain and second.plain):
        return None
    common = _largest(first, second)
    if common is None or common.size < worth:
        return None
    return _pieces(first, second, common)


class _Graph:
    """A graph and where everything in it is."""

    def __init__(self, model: subset.Model) -> None:
        self.model = model
        graph = model.graph
        self.nodes = list(graph.node)
        self.constants = {one.name: one for one in graph.initializer}
        self.inputs = [one.name for one in graph.input if one.name not in self.constants]
        self.outputs = [one.name for one in graph.output]
        self.types = {
            one.name: one for some in (graph.value_info, graph.input, graph.output) for one in some
        }
        self.producer = {
            name: at for at, node in enumerate(self.nodes) for name in node.output if name
        }
        self.signatures = [_signature(node) for node in self.nodes]
        #: Whether every node takes what it names and nothing else.
        self.plain = not graph.sparse_initializer and not any(
            attribute.HasField("g") or attribute.graphs
            for node in self.nodes
            for attribute in node.attribute
        )

    def needed(self, wanted: Iterable[str], given: frozenset[str]) -> tuple[set[int], set[str]]:
        """The nodes that make something, when some of what they need is given, and what they take
        from outside: of what is given, and of the graph's inputs.
        """
        nodes: set[int] = set()
        taken: set[str] = set()
        ahead = list(wanted)
        while ahead:
            name = ahead.pop()
            if not name or name in self.constants:
                continue
            if name in given or name not in self.producer:
                taken.add(name)
                continue
            at = self.producer[name]
            if at not in nodes:
                nodes.add(at)
                ahead.extend(self.nodes[at].input)
        return nodes, taken

    def piece(self, nodes: set[int], inputs: Sequence[str], outputs: Sequence[str]) -> Piece | None:
        """A graph of some of the nodes; None where the type of an input or output is not said."""
        if not all(name in self.types for name in (*inputs, *outputs)):
            return None
        whole = self.model.graph
        model = subset.Model(ir_version=self.model.ir_version, opset_import=self.model.opset_import)
        graph = model.graph
        graph.name = whole.name
        graph.node.extend(self.nodes[at] for at in sorted(nodes))
        used = {name for node in graph.node for name in node.input}
        made = {name for node in graph.node for name in node.output}
        graph.initializer.extend(one for one in whole.initializer if one.name in used)
        graph.value_info.extend(
            one for one in whole.value_info if one.name in made and one.name not in outputs
        )
        graph.input.extend(self.types[name] for name in inputs)
        graph.output.extend(self.types[name] for name in outputs)
        return Piece(model.SerializeToString(), tuple(inputs), tuple(outputs))


@dataclass(frozen=True)
class _Common:
    """What two graphs have in common: from `image` or `images` to the logits or `seen`.

    Attributes:
        image: what goes in, in the first graph.
        images: in the second.
        seen: what comes out of it, in the second; in the first, the logits.
        nodes: in the second.
        size: bytes of its weights.

    """

    image: str
    images: str
    seen: str
    nodes: frozenset[int]
    size: int


def _largest(first: _Graph, second: _Graph) -> _Common | None:
    """The largest part of the second that is what makes the logits of the first."""
    if first.producer.get(_LOGITS) is None:
        return None
    at = first.producer[_LOGITS]
    found: list[_Common] = []
    for other, signature in enumerate(second.signatures):
        if signature == first.signatures[at]:
            for name in second.nodes[other].output[:1]:
                common = _common(first, second, name)
                found += [common] if common else []
    return max(found, key=lambda one: one.size, default=None)


def _common(first: _Graph, second: _Graph, seen: str) -> _Common | None:
    """What makes both the logits and `seen`, if it begins in one place and nothing within is used
    by anything else in the second graph.
    """
    closed: set[str] = set()
    for _ in range(_TRIES):
        pairs, ends = _walk(first, second, seen, closed)
        if len(ends) != 1 or not pairs:
            return None
        nodes = frozenset(pairs.values())
        used = _used_elsewhere(second, nodes, seen)
        if not used:
            [(image, images)] = ends
            if images in second.inputs:
                return None
            weights = {name for at in nodes for name in second.nodes[at].input}
            size = sum(one.ByteSize() for key, one in second.constants.items() if key in weights)
            return _Common(image, images, seen, nodes, size)
        closed |= used
    return None


def _walk(
    first: _Graph, second: _Graph, seen: str, closed: set[str]
) -> tuple[dict[int, int], set[tuple[str, str]]]:
    """Nodes of the second by those of the first that are the same, from the end on, and the pairs
    of names behind which they are not. Not through names of the second that are closed.
    """
    pairs: dict[int, int] = {}
    ends: set[tuple[str, str]] = set()
    ahead = [(_LOGITS, seen)]
    while ahead:
        one, other = ahead.pop()
        a, b = first.producer.get(one), second.producer.get(other)
        if a is not None and b is not None and pairs.get(a) == b:
            continue
        inputs = None if a is None or b is None else list(_alike(first, a, second, b))
        if other in closed or a is None or b is None or a in pairs or not inputs or None in inputs:
            ends.add((one, other))
            continue
        pairs[a] = b
        ahead += [pair for pair in inputs if pair]
    return pairs, ends


def _alike(first: _Graph, a: int, second: _Graph, b: int) -> Iterator[tuple[str, str] | None]:
    """Pairs of inputs of two nodes that must be the same for the nodes to be; None when they
    cannot be, whatever these are. Nodes of several outputs are like none.
    """
    one, other = first.nodes[a], second.nodes[b]
    if (
        first.signatures[a] != second.signatures[b]
        or len(one.input) != len(other.input)
        or not len(one.output) == len(other.output) == 1
    ):
        yield None
        return
    for left, right in zip(one.input, other.input, strict=True):
        if not left and not right:
            continue
        mine, theirs = first.constants.get(left), second.constants.get(right)
        if mine is not None and theirs is not None:
            if not _same(mine, theirs):
                yield None
        elif left and right and mine is theirs is None:
            yield left, right
        else:
            yield None


def _used_elsewhere(graph: _Graph, nodes: frozenset[int], seen: str) -> set[str]:
    """What some nodes make that others, or those who ask, use as well; but for what is seen."""
    made = {name for at in nodes for name in graph.nodes[at].output} - {seen}
    used = set(graph.outputs)
    for at, node in enumerate(graph.nodes):
        if at not in nodes:
            used.update(node.input)
    return made & used


def _pieces(first: _Graph, second: _Graph, common: _Common) -> Cut | None:
    image, images, seen = common.image, common.images, common.seen
    body, taken = first.needed(first.outputs, frozenset((image,)))
    # A wire that is the image itself would have nothing in front; ours are always clamped.
    if taken != {image} or image in first.inputs:
        return None
    start, wire = first.needed([image], frozenset())
    early, taken = second.needed([images], frozenset())
    made = {name for at in early for name in second.nodes[at].output}
    late, needs = second.needed(second.outputs, frozenset((seen, *made)))
    pieces = (
        first.piece(start, sorted(wire), [image]),
        first.piece(body, [image], first.outputs),
        second.piece(early, sorted(taken), [images, *sorted((needs & made) - {images})]),
        second.piece(late, sorted(needs), second.outputs),
    )
    if late & common.nodes or seen not in needs or None in pieces:
        return None
    return Cut(*pieces, image, images, seen)  # type: ignore[arg-type]


def _same(one: subset.Tensor, other: subset.Tensor) -> bool:
    """Of the same values, shape and type."""
    return _unnamed(one) == _unnamed(other)


def _unnamed(tensor: subset.Tensor) -> bytes:
    copy = subset.Tensor()
    copy.CopyFrom(tensor)
    copy.ClearField("name")
    return copy.SerializeToString(deterministic=True)


def _signature(node: subset.Node) -> tuple[str, str, tuple[bytes, ...]]:
    """What a node does, whatever it is called and takes."""
    attributes = [one.SerializeToString(deterministic=True) for one in node.attribute]
    return node.op_type, node.domain, tuple(sorted(attributes))
