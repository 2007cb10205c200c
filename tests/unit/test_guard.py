"""Assembly, compilation and parity."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
import torch

from firewall.bundle.onnx_file import check_graph
from firewall.bundle.spec import GuardSpec, InputSpec, ScoreSpec, StageSpec
from firewall.bundle.store import Bundle
from firewall.errors import (
    BundleMalformed,
    ConfigError,
    EvidenceMissing,
    ParityError,
    PluginNotFound,
    StageFault,
)
from firewall.guard.assemble import assemble
from firewall.guard.compile import compile_embedded, compile_split, example
from firewall.guard.parity import check_parity, check_row_independence
from firewall.guard.wire_input import WireInput
from firewall.screening.classifier import Answers
from firewall.screening.compiled import CompiledGuard
from firewall.screening.scores import Scores
from firewall.screening.selftest import SelfTest
from firewall.screening.split import SplitGuard
from firewall.stages import (
    API_VERSION,
    RAW,
    Denoiser,
    Detector,
    Ensemble,
    Evidence,
    FitReport,
    Needs,
    StageConfig,
)
from firewall.stages.registry import Registry
from firewall.train.fit_stages import Material, fit_stages
from tests.support.tiny import CLASSES, GUARD, INPUT, TinyClassifier
from tests.support.tiny import wire as wire_of


def spec(*stages: tuple[str, str, str, Mapping[str, Any]]) -> GuardSpec:
    return GuardSpec(
        stages=tuple(
            StageSpec(kind=kind, name=name, plugin=plugin, config=dict(config))  # type: ignore[arg-type]
            for kind, name, plugin, config in stages
        )
    )


BLUR = ("denoiser", "blur", "gaussian-blur", {})
NOISE = ("detector", "noise", "noise-floor", {})
VIEWS = ("detector", "views", "view-consistency", {})


@pytest.mark.parametrize(
    ("stages", "error", "words"),
    [
        ([VIEWS], EvidenceMissing, "'views' needs at least one view; denoisers of the guard: none"),
        (
            [BLUR, ("detector", "s", "feature-squeezing", {"views": ["bit-depth"]})],
            EvidenceMissing,
            "'s' needs 'bit-depth'; denoisers of the guard: blur",
        ),
        (
            [("detector", "n", "feature-norm", {"tap": "stem"})],
            EvidenceMissing,
            "'n' needs the feature 'stem'; the classifier taps: penultimate",
        ),
        ([BLUR], ConfigError, "at least one detector"),
        ([("detector", "half", "noise-floor", {})], ConfigError, "'half' is taken by torch"),
        ([("detector", "x", "nothing", {})], PluginNotFound, "'nothing' is not installed"),
        (
            [("denoiser", "b", "gaussian-blur", {"sigma": -1}), NOISE],
            ConfigError,
            "'gaussian-blur': key 'sigma' should be .*, got -1",
        ),
        (
            [("denoiser", "b", "gaussian-blur", {"sigmo": 1}), NOISE],
            ConfigError,
            "'gaussian-blur': key 'sigmo' is unknown",
        ),
    ],
)
def test_a_mismatch_is_refused_by_name(
    stages: list[Any], error: type[Exception], words: str, registry: Registry
) -> None:
    with pytest.raises(error, match=words):
        assemble(spec(*stages), registry, TinyClassifier())


def test_features_of_a_remote_classifier_are_refused(registry: Registry) -> None:
    with pytest.raises(EvidenceMissing, match="a remote classifier taps: none"):
        assemble(spec(("detector", "n", "feature-norm", {})), registry, None)


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ([NOISE, NOISE], "two stages are named 'noise'"),
        ([("denoiser", "raw", "median", {})], "'raw' belongs"),
        (
            [("ensemble", "a", "majority", {}), ("ensemble", "b", "majority", {})],
            "at most one ensemble",
        ),
    ],
)
def test_a_specification_that_contradicts_itself_is_refused(stages: list[Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        spec(*stages)


@pytest.mark.parametrize(
    "guard_spec",
    [
        GUARD,
        spec(NOISE),
        spec(BLUR, VIEWS),
        spec(BLUR, NOISE, VIEWS, ("ensemble", "vote", "majority", {})),
        spec(("denoiser", "m", "median", {}), ("denoiser", "b", "bit-depth", {"bits": 2}), VIEWS),
    ],
    ids=["all", "cheap only", "expensive only", "majority", "surrogates"],
)
@pytest.mark.parametrize(
    "input_spec",
    [
        INPUT,
        InputSpec(channels=3, height=32, width=32, layout="NHWC", datatype="UINT8", high=255.0),
        InputSpec(
            channels=3, height=32, width=32, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
        ),
    ],
    ids=["NCHW FP32", "NHWC UINT8", "normalised"],
)
def test_what_is_compiled_is_what_was_assembled(
    guard_spec: GuardSpec, input_spec: InputSpec, registry: Registry
) -> None:
    guard = assemble(guard_spec, registry, TinyClassifier())
    graphs = compile_embedded(guard, input_spec)
    for name, data in graphs.items():
        check_graph(name, data)
    assert check_parity(guard, CompiledGuard(graphs), input_spec) < 1e-3
    assert check_parity(guard, CompiledGuard(graphs, shared_from=0), input_spec) < 1e-3


def test_the_gate_closes_on_another_guard(registry: Registry) -> None:
    guard = assemble(GUARD, registry, TinyClassifier())
    compiled = CompiledGuard(compile_embedded(guard, INPUT))
    other = TinyClassifier()
    with torch.no_grad():
        other.last.bias.add_(torch.arange(float(CLASSES)))
    with pytest.raises(ParityError, match=r"log-probabilities: .* in ONNX and .* in torch on a"):
        check_parity(assemble(GUARD, registry, other), compiled, INPUT)


class _Formula(Detector):
    """A statistic that is any function of the image."""

    api_version: ClassVar[int] = API_VERSION
    Config = StageConfig
    tier = "cheap"
    needs = Needs()

    def __init__(self, formula: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.formula = formula

    def forward(self, evidence: Evidence) -> torch.Tensor:
        return self.formula(evidence.raw)


@pytest.mark.parametrize(
    "formula",
    [
        lambda x: 0.5 * torch.log(x.square().sum((1, 2, 3)) + 1e-12),
        lambda x: x.mean((1, 2, 3)) / (x.square().sum((1, 2, 3)) + 1e-9),
        lambda x: (x.var((1, 2, 3)) + 1e-10).sqrt().log(),
    ],
    ids=["logarithm", "quotient", "root"],
)
def test_small_constants_are_served_as_they_are(
    formula: Callable[[torch.Tensor], torch.Tensor], registry: Registry
) -> None:
    """The exporter's own optimiser takes up to 1e-8 for zero: -13.8 became minus infinity."""
    guard = assemble(spec(NOISE), registry, TinyClassifier())
    guard.detectors["noise"] = _Formula(formula)
    compiled = CompiledGuard(compile_embedded(guard, INPUT))
    assert check_parity(guard, compiled, INPUT) < 1e-2
    black = compiled.cheap(np.zeros((1, 3, 32, 32), np.float32)).statistics
    with torch.no_grad():
        assert black[0, 0] == pytest.approx(float(formula(torch.zeros(1, 3, 32, 32))), rel=1e-3)


def test_a_detector_that_looks_at_its_neighbours_is_named(registry: Registry) -> None:
    guard = assemble(spec(NOISE), registry, TinyClassifier())
    guard.detectors["noise"] = _Formula(lambda x: x.mean((1, 2, 3)) - x.mean())
    compiled = CompiledGuard(compile_embedded(guard, INPUT))
    rows = wire_of(6, 3)
    with pytest.raises(
        ParityError, match=r"detector 'noise': 0 for an image alone and .* 5 others"
    ):
        check_row_independence(guard, lambda chosen: compiled.both(rows[chosen]), len(rows))
    honest = assemble(GUARD, registry, TinyClassifier())
    compiled = CompiledGuard(compile_embedded(honest, INPUT))
    check_row_independence(honest, lambda chosen: compiled.both(rows[chosen]), len(rows))


def test_a_detector_that_fails_on_a_plain_image_is_named(registry: Registry) -> None:
    guard = assemble(spec(NOISE), registry, TinyClassifier())
    guard.detectors["noise"] = _Formula(lambda x: x.square().sum((1, 2, 3)).log())
    compiled = CompiledGuard(compile_embedded(guard, INPUT))
    with pytest.raises(ParityError, match=r"detector 'noise': -inf on a black image.*clamp_min"):
        check_parity(guard, compiled, INPUT)


def test_around_a_classifier_of_its_own_the_parts_are_the_whole(registry: Registry) -> None:
    """The same statistics as the fused guard's, and views asked for of doubtful rows alone."""
    stages = spec(
        BLUR,
        ("denoiser", "median", "median", {}),
        NOISE,
        ("detector", "norm", "feature-norm", {}),
        VIEWS,
        ("ensemble", "mean", "log-average", {}),
    )
    classifier = TinyClassifier()
    whole = assemble(stages, registry, classifier)
    graphs = compile_split(whole, INPUT, CLASSES, {"penultimate": (16 * 16,)})
    for name, data in graphs.items():
        check_graph(name, data)
    asked: list[int] = []

    class Torch:
        def ready(self) -> bool:
            return True

        def infer(
            self, wire: np.ndarray, deadline: float | None, *, scores_only: bool = False
        ) -> Answers:
            asked.append(len(wire))
            with torch.no_grad():
                found = classifier(WireInput(INPUT)(torch.from_numpy(wire)))
            return Answers(
                found.logits.numpy(), {tap: one.numpy() for tap, one in found.features.items()}
            )

        def close(self) -> None:
            pass

    served = SplitGuard(graphs, Torch(), INPUT, Scores(ScoreSpec(), (CLASSES,), CLASSES))
    for rows in (1, 2, 17):
        wire = example(INPUT, rows, seed=rows)
        with torch.no_grad():
            expected_log, expected = whole(WireInput(INPUT)(wire))
        found_log, statistics = served.both(wire.numpy(), batch=rows)
        assert np.allclose(found_log, expected_log, atol=1e-4)
        assert np.allclose(statistics, expected, atol=1e-4)
    asked.clear()
    cheap = served.cheap(example(INPUT, 17).numpy())
    served.expensive(example(INPUT, 17).numpy(), cheap, np.array([3, 5]))
    assert asked == [17, 4]


def test_graphs_tell_nothing_of_who_made_them(registry: Registry) -> None:
    """The exporter writes stack traces and paths into every node unless it is stopped."""
    guard = assemble(GUARD, registry, TinyClassifier())
    for data in compile_embedded(guard, INPUT).values():
        assert b".py" not in data
        assert b"/" + b"home" not in data
        assert not onnx.load_from_string(data).metadata_props


def test_the_attacker_differentiates_through_both_tiers(registry: Registry) -> None:
    guard = assemble(GUARD, registry, TinyClassifier())
    x = example(INPUT, 2).requires_grad_(True)
    log_probabilities, statistics = guard(x)
    for column in range(statistics.shape[1]):
        (gradient,) = torch.autograd.grad(statistics[:, column].sum(), x, retain_graph=True)
        assert torch.isfinite(gradient).all()
        assert gradient.abs().sum() > 0
    (gradient,) = torch.autograd.grad(log_probabilities[:, 0].sum(), x)
    assert gradient.abs().sum() > 0


class _Wrong(torch.nn.Module):
    def __init__(self, result: Any) -> None:
        super().__init__()
        self.result = result
        self.tier = "cheap"

    def forward(self, *_: Any) -> Any:
        return self.result


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (torch.zeros(2, 1), r"torch.float32 \[2, 1\]"),
        (torch.zeros(2, dtype=torch.float64), r"torch.float64 \[2\]"),
        (torch.zeros(3), r"torch.float32 \[3\]"),
        ([0.0, 0.0], "list"),
    ],
)
def test_a_stage_is_not_taken_at_its_word(result: Any, words: str, registry: Registry) -> None:
    guard = assemble(GUARD, registry, TinyClassifier())
    guard.detectors["noise-floor"] = _Wrong(result)
    with pytest.raises(StageFault, match=rf"detector 'noise-floor' returned {words}; expected"):
        guard(example(INPUT, 2))
    guard = assemble(GUARD, registry, TinyClassifier())
    guard.denoisers["blur"] = _Wrong(result)
    with pytest.raises(StageFault, match=rf"denoiser 'blur' returned {words}; expected"):
        guard(example(INPUT, 2))


class _NotANumber(Denoiser):
    api_version: ClassVar[int] = API_VERSION
    Config = StageConfig

    def __init__(self) -> None:
        super().__init__()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Bright images fail; others are fine.
        bright = x.mean(dim=(1, 2, 3), keepdim=True) > 0.9
        return torch.where(bright, torch.full_like(x, torch.nan), x)


@pytest.mark.parametrize("ensemble", [True, False])
def test_a_view_that_fails_is_a_fault_in_onnxruntime_too(
    ensemble: bool, registry: Registry
) -> None:
    """Its maxima drop NaN; the taint does not."""
    stages = [BLUR, ("denoiser", "late", "median", {}), VIEWS]
    if ensemble:
        stages.append(("ensemble", "mean", "log-average", {}))
    guard = assemble(spec(*stages), registry, TinyClassifier())
    guard.denoisers["late"] = _NotANumber()
    compiled = CompiledGuard(compile_embedded(guard, INPUT))
    wire = np.stack([np.full((3, 32, 32), 1.0, np.float32), example(INPUT, 1)[0].numpy()])
    found = compiled.expensive(wire, compiled.cheap(wire), np.arange(2))
    assert np.isfinite(found.log_probabilities).all(axis=1).tolist() == [False, True]


class _Learns(Ensemble):
    """Fitted on the logits of views: what a fit must be handed."""

    api_version: ClassVar[int] = API_VERSION
    Config = StageConfig

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("gap", torch.zeros(()))

    def fit(self, data: Evidence, rng: torch.Generator) -> FitReport:
        self.gap.copy_((data.logits["blur"] - data.logits[RAW]).abs().mean())
        return FitReport(rows=len(data.raw), figures={"gap": float(self.gap)})

    def forward(self, evidence: Evidence) -> torch.Tensor:
        return torch.log_softmax(evidence.logits[RAW], dim=1)


def test_every_stage_that_can_learn_is_fitted_on_what_it_will_see(registry: Registry) -> None:
    guard = assemble(spec(BLUR, VIEWS), registry, TinyClassifier())
    guard.ensemble = _Learns()
    figures = fit_stages(guard, Material(wire_of(12, 1), INPUT), seed=0)
    assert figures["ensemble"]["gap"] > 0


def test_views_are_named_and_raw_exists(registry: Registry) -> None:
    guard = assemble(GUARD, registry, TinyClassifier())
    x = example(INPUT, 2)
    views = guard.views(x)
    assert list(views) == ["blur", "bit-depth"]
    evidence = Evidence(raw=x, logits={RAW: x, "blur": x + 1})
    assert len(evidence.view_logits(())) == 1


def test_a_graph_that_cannot_be_loaded_is_named() -> None:
    with pytest.raises(BundleMalformed, match=r"cheap\.onnx: not an ONNX model"):
        CompiledGuard({"cheap.onnx": b"hello"})


def test_cuda_fails_loudly_where_it_is_not_to_be_had(tiny: Bundle) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ConfigError, match="cuda"):
        CompiledGuard(tiny.files, device="cuda")


def test_the_selftest_notices_another_guard(tiny: Bundle, registry: Registry) -> None:
    stored = SelfTest.from_npz(tiny.files["selftest.npz"])
    stored.run(CompiledGuard(tiny.files))
    other = TinyClassifier()
    with torch.no_grad():
        other.first.weight.mul_(1.1)
    graphs = compile_embedded(assemble(GUARD, registry, other), INPUT)
    with pytest.raises(ParityError, match=r"selftest\.npz"):
        stored.run(CompiledGuard(graphs))


@pytest.mark.parametrize("data", [b"", b"hello", b"PK\x03\x04" + bytes(40)])
def test_what_is_no_selftest_is_refused(data: bytes) -> None:
    with pytest.raises(BundleMalformed, match=r"selftest\.npz"):
        SelfTest.from_npz(data)
