"""Where the windows of convolutions and pools lie: strides, dilations and the kinds of padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from firewall.lift.node import Node, Refusal


@dataclass(frozen=True)
class Padding:
    """What is added around the spatial axes, as (begin, end) pairs in their order.

    Attributes:
        pads: that the node asks for.
        beyond: more at the end, for windows that `ceil_mode` adds.

    """

    pads: tuple[tuple[int, int], ...]
    beyond: tuple[int, ...]

    @property
    def symmetric(self) -> tuple[int, ...] | None:
        """One number an axis, where both sides are equal and nothing lies beyond."""
        if any(self.beyond) or any(begin != end for begin, end in self.pads):
            return None
        return tuple(begin for begin, _ in self.pads)

    def pairs(self) -> list[int]:
        """As `torch.nn.functional.pad` has it, the last axis first; without what lies beyond."""
        return [side for pair in reversed(self.pads) for side in pair]

    def pairs_beyond(self) -> list[int]:
        """What lies beyond, in the same order."""
        return [side for end in reversed(self.beyond) for side in (0, end)]


@dataclass(frozen=True)
class Window:
    """The attributes that convolutions and pools share."""

    strides: tuple[int, ...] | None
    dilations: tuple[int, ...] | None
    pads: tuple[int, ...] | None
    auto_pad: str
    ceil: bool

    @classmethod
    def of(cls, node: Node) -> Window:
        """Read them from a node."""

        def read(name: str) -> tuple[int, ...] | None:
            found = node.attributes.get(name)
            return None if found is None else tuple(int(one) for one in found)

        auto_pad = node.text("auto_pad", "NOTSET")
        if auto_pad not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
            raise Refusal(f"auto_pad {auto_pad}")
        return cls(
            read("strides"), read("dilations"), read("pads"), auto_pad, node.flag("ceil_mode")
        )

    def steps(self, rank: int) -> tuple[int, ...]:
        """One stride an axis."""
        return self.strides or (1,) * rank

    def spacing(self, rank: int) -> tuple[int, ...]:
        """One dilation an axis."""
        return self.dilations or (1,) * rank

    def padding(self, sizes: Sequence[int], kernel: Sequence[int]) -> Padding:
        """What is to be added to spatial axes of these sizes."""
        rank = len(sizes)
        strides, dilations = self.steps(rank), self.spacing(rank)
        given = self.pads or (0,) * (2 * rank)
        pads, beyond = [], []
        for axis, size in enumerate(sizes):
            stride, extent = strides[axis], dilations[axis] * (kernel[axis] - 1) + 1
            if self.auto_pad in ("SAME_UPPER", "SAME_LOWER"):
                total = max((-(-size // stride) - 1) * stride + extent - size, 0)
                small, large = total // 2, total - total // 2
                pads.append((small, large) if self.auto_pad == "SAME_UPPER" else (large, small))
                beyond.append(0)
                continue
            begin, end = (0, 0) if self.auto_pad == "VALID" else (given[axis], given[axis + rank])
            pads.append((begin, end))
            room = size + begin + end - extent
            more = -room % stride if self.ceil and self.auto_pad != "VALID" else 0
            # A window that would start in the padding behind the values is left out.
            starts = (room + more) // stride * stride
            beyond.append(0 if starts >= size + begin else more)
        return Padding(tuple(pads), tuple(beyond))
