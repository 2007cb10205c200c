"""From the torch module to ONNX graphs.

Embedded classifier: two graphs, one a tier, each with the input mapping and the classifier fused
in. A classifier that stays outside, as a graph of its own or on another server: the graphs before
and after its calls (`firewall.screening.split`).

The bytes of a graph are all of it: no external data, so that a bundle stays self-contained.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Mapping, Sequence

import onnx
import torch
from torch import Tensor, nn

from firewall.bundle.spec import InputSpec
from firewall.errors import ParityError
from firewall.guard.classifier import Bounded, Classifier
from firewall.guard.graph import Guard
from firewall.guard.interval import UNIT_ROUNDOFF, least_lead
from firewall.guard.simplify import simplify
from firewall.guard.wire_input import DTYPES, WireInput
from firewall.stages import RAW, Denoiser, Evidence

#: Opset of the graphs: what onnxruntime 1.20, our oldest, runs on every provider.
OPSET = 20


class CheapTier(nn.Module):
    """wire -> logits [N, K], cheap statistics [N, Dc] (if any), carried features."""

    def __init__(self, guard: Guard, spec: InputSpec) -> None:
        super().__init__()
        self.guard = guard
        self.wire = WireInput(spec)

    def forward(self, wire: Tensor) -> tuple[Tensor, ...]:
        """Outputs in the order of `cheap_outputs`."""
        out = self.guard.cheap(self.wire(wire))
        stacked = [torch.stack(list(out.statistics.values()), dim=1)] if out.statistics else []
        return (out.logits, *stacked, *out.features.values())


class ExpensiveTier(nn.Module):
    """wire, logits, carried features -> log-probabilities [N, K], expensive statistics [N, De]."""

    def __init__(self, guard: Guard, spec: InputSpec) -> None:
        super().__init__()
        self.guard = guard
        self.wire = WireInput(spec)

    def forward(self, wire: Tensor, logits: Tensor, *features: Tensor) -> tuple[Tensor, ...]:
        """Outputs in the order of `expensive_outputs`."""
        named = dict(zip(self.guard.carried_features, features, strict=True))
        out = self.guard.expensive(self.wire(wire), logits, named)
        stacked = [torch.stack(list(out.statistics.values()), dim=1)] if out.statistics else []
        return (out.log_probabilities, *stacked)


class Certificate(nn.Module):
    """wire, radius [N] -> top class [N] and its least lead [N] within that L-infinity radius."""

    def __init__(self, classifier: Bounded, guard: Guard, spec: InputSpec) -> None:
        super().__init__()
        self.guard = guard
        self.bounded = classifier
        self.wire = WireInput(spec)
        largest = float(self.wire.shift.abs().max())
        self.hair = 0.0 if self.wire.identity else UNIT_ROUNDOFF * 4 * (1 + largest)

    def forward(self, wire: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
        """A positive lead certifies the class."""
        x = self.wire(wire)
        label = self.guard.cheap(x).logits.argmax(dim=1)
        # What the mapping from the wire rounds, the client's own images may differ by as well.
        wide = radius.view(-1, 1, 1, 1) + self.hair
        leads = self.bounded.leads(x, wide, label, rounding=True)
        return label, least_lead(leads, label)


class Denoised(nn.Module):
    """wire -> logits [N, K] of the image that a denoiser makes of it."""

    def __init__(self, classifier: Classifier, denoiser: Denoiser, spec: InputSpec) -> None:
        super().__init__()
        self.classifier = classifier
        self.denoiser = denoiser
        self.wire = WireInput(spec)

    def forward(self, wire: Tensor) -> tuple[Tensor]:
        """Denoised smoothing (Salman et al. 2020, arXiv:2003.01908)."""
        return (self.classifier(self.denoiser(self.wire(wire))).logits,)


class SplitCheap(nn.Module):
    """wire, logits [N, K], features -> cheap statistics [N, Dc]."""

    def __init__(self, guard: Guard, spec: InputSpec, taps: Sequence[str]) -> None:
        super().__init__()
        self.guard = guard
        self.wire = WireInput(spec)
        self.taps = tuple(taps)

    def forward(self, wire: Tensor, logits: Tensor, *features: Tensor) -> Tensor:
        """Compute the statistics of the guard's cheap detectors, in order."""
        named = dict(zip(self.taps, features, strict=True))
        evidence = Evidence(raw=self.wire(wire), logits={RAW: logits}, features=named)
        return torch.stack(list(self.guard.cheap_statistics(evidence).values()), dim=1)


class SplitViews(nn.Module):
    """wire -> views [V, N, C, H, W] in [0, 1]."""

    def __init__(self, guard: Guard, spec: InputSpec) -> None:
        super().__init__()
        self.guard = guard
        self.wire = WireInput(spec)

    def forward(self, wire: Tensor) -> Tensor:
        """Stack the views in the order of the guard's denoisers."""
        return torch.stack(list(self.guard.views(self.wire(wire)).values()))


class SplitExpensive(nn.Module):
    """wire, views, logits [V + 1, N, K], features -> log-probabilities [N, K], statistics."""

    def __init__(self, guard: Guard, spec: InputSpec, taps: Sequence[str]) -> None:
        super().__init__()
        self.guard = guard
        self.wire = WireInput(spec)
        self.taps = tuple(taps)

    def forward(
        self, wire: Tensor, views: Tensor, logits: Tensor, *features: Tensor
    ) -> tuple[Tensor, ...]:
        """Compute the outputs in the order that `firewall.screening.split` expects."""
        named = dict(zip(self.taps, features, strict=True))
        by_view = {name: views[index] for index, name in enumerate(self.guard.denoisers)}
        said = {name: logits[index] for index, name in enumerate([RAW, *by_view])}
        evidence = Evidence(raw=self.wire(wire), views=by_view, logits=said, features=named)
        out = self.guard.judge(evidence, self.guard.tier("expensive"))
        stacked = [torch.stack(list(out.statistics.values()), dim=1)] if out.statistics else []
        return (out.log_probabilities, *stacked)


def compile_embedded(guard: Guard, spec: InputSpec) -> dict[str, bytes]:
    """The graphs of a guard around an embedded classifier: one a tier, and one of certificates.

    `expensive.onnx` is absent when the guard has nothing expensive, `certificate.onnx` when the
    classifier cannot be bounded.
    """
    wire = example(spec, 2)
    cheap = CheapTier(guard, spec).eval()
    outputs = ["logits"]
    if guard.tier("cheap"):
        outputs.append("statistics")
    outputs += [f"feature.{tap}" for tap in guard.carried_features]
    graphs = {"cheap.onnx": export(cheap, {"wire": wire}, outputs)}
    if guard.tier("expensive") or guard.ensemble is not None:
        with torch.no_grad():
            first = cheap(wire)
        features = first[len(first) - len(guard.carried_features) :]
        inputs = {"wire": wire, "logits": first[0]}
        inputs |= {
            f"feature.{tap}": value
            for tap, value in zip(guard.carried_features, features, strict=True)
        }
        outputs = ["log_probabilities"]
        if guard.tier("expensive"):
            outputs.append("statistics")
        graphs["expensive.onnx"] = export(
            ExpensiveTier(guard, spec).eval(), inputs, outputs, tail=2
        )
    if isinstance(guard.classifier, Bounded):
        inputs = {"wire": wire, "radius": torch.tensor([0.01, 0.02])}
        certificate = Certificate(guard.classifier, guard, spec).eval()
        graphs["certificate.onnx"] = export(certificate, inputs, ["label", "lead"])
    return graphs


def compile_denoised(classifier: Classifier, denoiser: Denoiser, spec: InputSpec) -> bytes:
    """The graph `smoothed.onnx`: the classifier behind a denoiser that only smoothing uses."""
    module = Denoised(classifier, denoiser, spec).eval()
    return export(module, {"wire": example(spec, 2)}, ["logits"])


def compile_split(
    guard: Guard, spec: InputSpec, num_classes: int, features: Mapping[str, tuple[int, ...]]
) -> dict[str, bytes]:
    """The graphs of a guard around a classifier that is not part of them.

    Args:
        guard: its stages are compiled; its classifier, if any, is not.
        spec: what clients send.
        num_classes: of the classifier.
        features: shape of one row's features, by tap.

    Returns:
        The graphs of `firewall.screening.split`, by name.

    """
    wire = example(spec, 2)
    logits = torch.randn(2, num_classes)

    def tapped(tier: str) -> dict[str, Tensor]:
        return {tap: torch.randn(2, *features[tap]) for tap in guard.features_of(tier)}

    graphs: dict[str, bytes] = {}
    if guard.tier("cheap"):
        seen = tapped("cheap")
        inputs = {"wire": wire, "logits": logits}
        inputs |= {f"feature.{tap}": values for tap, values in seen.items()}
        cheap = SplitCheap(guard, spec, list(seen)).eval()
        graphs["cheap.onnx"] = export(cheap, inputs, ["statistics"], tail=2)
    if not guard.tier("expensive") and guard.ensemble is None:
        return graphs
    count = len(guard.denoisers)
    if count:
        views = SplitViews(guard, spec).eval()
        graphs["views.onnx"] = export(views, {"wire": wire}, ["views"])
    seen = tapped("expensive")
    inputs = {
        "wire": wire,
        "views": torch.rand(count, 2, spec.channels, spec.height, spec.width),
        "logits": torch.randn(count + 1, 2, num_classes),
    }
    inputs |= {f"feature.{tap}": values for tap, values in seen.items()}
    expensive = SplitExpensive(guard, spec, list(seen)).eval()
    outputs = ["log_probabilities"] + (["statistics"] if guard.tier("expensive") else [])
    graphs["expensive.onnx"] = export(
        expensive, inputs, outputs, batch_axis={"views": 1, "logits": 1}, tail=3
    )
    return graphs


def example(spec: InputSpec, rows: int, seed: int = 0) -> Tensor:
    """A batch of noise as it would come over the wire, [rows, *spec.shape]."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(rows, spec.channels, spec.height, spec.width, generator=generator)
    wire: Tensor = WireInput(spec).back(x).contiguous()
    assert wire.dtype == DTYPES[spec.datatype]
    return wire


def export(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    batch_axis: Mapping[str, int] | None = None,
    *,
    tail: int | None = None,
) -> bytes:
    """One self-contained ONNX graph, dynamic in the batch.

    Args:
        module: called with the inputs in order; returns a tuple as long as `outputs`.
        inputs: by name, each with at least two rows (one row would be specialised).
        outputs: names.
        batch_axis: by input name, where the batch is not axis 0.
        tail: place from which on the module takes its inputs as `*args`; None where it does not.

    """
    batch = torch.export.Dim("batch", min=1, max=65536)
    axes = batch_axis or {}
    shapes = tuple({axes.get(name, 0): batch} for name in inputs)
    # A *args module takes its tail as one tuple of shapes.
    dynamic: tuple[object, ...] = shapes
    if tail is not None and len(shapes) > tail:
        dynamic = (*shapes[:tail], shapes[tail:])
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            tuple(inputs.values()),
            dynamo=True,
            dynamic_shapes=dynamic,
            input_names=list(inputs),
            output_names=list(outputs),
            opset_version=OPSET,
            optimize=False,  # `simplify` does, and keeps small constants.
            verbose=False,
        )
    assert program is not None
    simplify(program.model)
    proto = program.model_proto
    for value in proto.graph.input:
        axis = axes.get(value.name, 0)
        if not value.type.tensor_type.shape.dim[axis].dim_param:
            raise ParityError(
                f"input {value.name!r} was exported with a fixed batch; a stage computes with the "
                "number of rows as a number"
            )
    del proto.metadata_props[:]
    for node in proto.graph.node:
        # The exporter keeps source paths and stack traces there: nobody's business.
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        del value.metadata_props[:]
    proto.graph.doc_string = ""
    onnx.checker.check_model(proto)
    buffer = io.BytesIO()
    onnx.save_model(proto, buffer)
    return buffer.getvalue()
