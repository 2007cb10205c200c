"""Interval bounds: against brute force, against every attack, in torch and as served."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from firewall.attack.apgd import AutoPGD, TargetedAutoPGD
from firewall.attack.gradient import pgd
from firewall.attack.losses import dlr
from firewall.attack.oracle import Oracle, Replies
from firewall.attack.square import Square
from firewall.attack.victim import Victim
from firewall.bundle.signing import Signer
from firewall.bundle.spec import InputSpec
from firewall.bundle.store import Bundle, open_bundle
from firewall.errors import ConfigError, ParityError
from firewall.evaluation.request import Request
from firewall.evaluation.run import evaluate
from firewall.evaluation.target import BundleTarget
from firewall.guard.assemble import assemble
from firewall.guard.compile import Certificate, compile_embedded
from firewall.guard.interval import Interval, affine, box, least_lead, margins
from firewall.guard.parity import check_parity
from firewall.screening.certificate import PARTS, interval_certificates
from firewall.screening.compiled import CompiledGuard
from firewall.screening.live import LiveGuard
from firewall.screening.load import load_guard, read_selftest
from firewall.screening.policy import Policy
from firewall.screening.verdict import UNCERTIFIED, Verdict
from firewall.stages.registry import Registry
from firewall.train.networks import Cnn, NetworkSpec, make_network
from tests.support.bounded import RADIUS, SPEC, build_bounded, fit_bounded, held_out


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Cnn:
    return fit_bounded(tmp_path_factory.mktemp("bounded"))


@pytest.fixture(scope="module")
def bundle(network: Cnn, signer: Signer, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = build_bounded(tmp_path_factory.mktemp("bundle") / "bounded", signer, network)
    return open_bundle(path, {signer.public})


def logits(network: Cnn) -> Any:
    return lambda x: network(x).logits


def certified(network: Cnn, x: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        label = network(x).logits.argmax(dim=1)
        leads = network.leads(x, radius, label, rounding=True)
    return label, least_lead(leads, label)


def test_an_affine_layer_is_bounded_exactly() -> None:
    """The bound of one linear layer is reached, at a corner of the box."""
    torch.manual_seed(0)
    layer = nn.Linear(6, 3)
    within = Interval(torch.zeros(1, 6), torch.rand(1, 6))
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 6) * within.upper
    with torch.no_grad():
        reached, found = layer(corners), affine(within, layer)
    assert torch.allclose(found.lower[0], reached.amin(dim=0), atol=1e-6)
    assert torch.allclose(found.upper[0], reached.amax(dim=0), atol=1e-6)


def test_margins_are_tighter_than_the_difference_of_bounds_and_hold() -> None:
    torch.manual_seed(1)
    last, label = nn.Linear(5, 4), torch.tensor([2])
    within = Interval(torch.zeros(1, 5), torch.ones(1, 5))
    with torch.no_grad():
        leads = margins(within, last, label)
        apart = affine(within, last)
        corners = last(torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 5))
    reached = (corners[:, 2:3] - corners).amin(dim=0)
    assert leads[0, 2] == 0
    others = [0, 1, 3]
    assert torch.allclose(leads[0, others], reached[others], atol=1e-6)
    assert (leads[0, others] >= apart.lower[0, 2] - apart.upper[0, others] - 1e-6).all()


def test_rounding_widens_every_bound() -> None:
    torch.manual_seed(2)
    layer = nn.Conv2d(2, 3, 3, padding=1)
    within = box(torch.rand(4, 2, 8, 8), 0.05)
    with torch.no_grad():
        plain, wide = affine(within, layer), affine(within, layer, rounding=True)
    assert (wide.lower < plain.lower).all()
    assert (wide.upper > plain.upper).all()
    # By parts in a hundred thousand, not more.
    assert float((wide.upper - plain.upper).max()) < 1e-4


def test_bounds_hold_for_a_machine_at_radius_zero() -> None:
    """In double precision the logits stay within what float32 with rounding allows."""
    net = make_network(NetworkSpec(width=8, hidden=32), (1, 8, 8), 10, 4)
    x = torch.rand(64, 1, 8, 8)
    with torch.no_grad():
        label = net(x).logits.argmax(dim=1)
        bound = net.leads(x, 0.0, label, rounding=True)
        exact = net.double()(x.double()).logits
    true = exact.gather(1, label[:, None]) - exact
    assert (bound <= true + 1e-12).all()


@pytest.mark.parametrize("architecture", ["cnn", "shallow"])
@pytest.mark.parametrize("side", [8, 11])
def test_linear_bounds_hold_and_are_tighter_before_training(architecture: Any, side: int) -> None:
    spec = NetworkSpec(architecture=architecture, width=4, hidden=16)
    net = make_network(spec, (1, side, side), 5, 0)
    x = torch.rand(12, 1, side, side)
    label = torch.arange(12) % 5
    with torch.no_grad():
        linear, plain = net.crown_leads(x, 0.03, label)
        assert torch.allclose(plain, net.leads(x, 0.03, label))
        assert (linear >= plain - 1e-5).float().mean() > 0.95
        assert linear.mean() > plain.mean()
        # At radius zero nothing is lost: the very leads.
        exact = net(x).logits
        leads = exact.gather(1, label[:, None]) - exact
        assert torch.allclose(net.crown_leads(x, 0.0, label)[0], leads, atol=1e-5)
        for _ in range(200):
            point = (x + 0.03 * torch.sign(torch.randn(x.shape))).clamp(0, 1)
            logits = net(point).logits
            assert (logits.gather(1, label[:, None]) - logits >= linear - 1e-5).all()


def test_no_attack_finds_a_violation(network: Cnn) -> None:
    """Over 100,000 images within the certified radius, by every kind of attack."""
    x, _ = held_out()
    label, lead = certified(network, x, RADIUS)
    held = lead > 0
    assert held.float().mean() > 0.5
    x, label = x[held], label[held]
    model = logits(network)
    tries = 0

    def holds(found: Tensor, clean: Tensor, wanted: Tensor) -> None:
        nonlocal tries
        assert float((found - clean).abs().max()) <= RADIUS + 1e-6
        with torch.no_grad():
            assert torch.equal(model(found).argmax(dim=1), wanted)
        tries += len(found)

    for attack in (
        AutoPGD(RADIUS, 30), AutoPGD(RADIUS, 30, loss=dlr), TargetedAutoPGD(RADIUS, 20),
        pgd(RADIUS, 40),
    ):  # fmt: skip
        holds(attack(model, x[:150], label[:150]), x[:150], label[:150])
    seen: list[int] = []

    def replies(points: Tensor) -> Replies:
        seen.append(len(points))
        with torch.no_grad():
            return Replies.of(torch.log_softmax(model(points), dim=1))

    with torch.no_grad():
        few, wanted = x[:150], label[:150]
        found = Square(RADIUS, 100)(Oracle(replies, len(few), 100), few, wanted, seed=0)
    holds(found, few, wanted)
    generator = torch.Generator().manual_seed(0)
    while tries + sum(seen) < 100_000:
        # Corners of the box, which is where a network is pushed the furthest.
        signs = torch.randint(0, 2, x.shape, generator=generator) * 2 - 1
        holds((x + RADIUS * signs).clamp(0, 1), x, label)


def test_no_attack_violates_what_is_certified_at_its_largest(network: Cnn, bundle: Bundle) -> None:
    """Row by row at the very radius that `Certify` answers."""
    x, _ = held_out()
    x = x[:120]
    found = interval_certificates(CompiledGuard(bundle.files), x.numpy(), 2 * RADIUS)
    radius = torch.tensor([one.radius for one in found]).view(-1, 1, 1, 1)
    label = torch.tensor([one.label for one in found])
    assert len(set(radius.flatten().tolist())) > 5
    model, point = logits(network), x.clone()
    for _ in range(60):
        point = point.detach().requires_grad_(True)
        loss = nn.functional.cross_entropy(model(point), label, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, point)
        moved = point.detach() + 0.1 * radius * gradient.sign()
        point = (x + torch.clamp(moved - x, -radius, radius)).clamp(0, 1)
        with torch.no_grad():
            assert torch.equal(model(point).argmax(dim=1), label)


def test_served_bounds_are_those_of_torch(network: Cnn, bundle: Bundle) -> None:
    compiled = CompiledGuard(bundle.files)
    x, _ = held_out()
    for radius in (0.0, 0.03, RADIUS):
        label, lead = certified(network, x, radius)
        got_label, got = compiled.certify(x.numpy(), np.full(len(x), radius, np.float32))
        assert np.array_equal(got_label, label.numpy())
        assert np.allclose(got, lead.numpy(), rtol=1e-5, atol=2e-5)
        assert np.array_equal(got > 0, lead.numpy() > 0)


def test_a_certificate_is_the_largest_of_the_grid(network: Cnn, bundle: Bundle) -> None:
    compiled, largest = CompiledGuard(bundle.files), 2 * RADIUS
    x, _ = held_out()
    rows = x[:40].numpy()
    found = interval_certificates(compiled, rows, largest)
    part = largest / PARTS
    for row, one in enumerate(found):
        _, lead = certified(network, x[row : row + 1], one.radius)
        assert one.radius == 0 or lead > 0
        if one.radius < largest:
            _, lead = certified(network, x[row : row + 1], one.radius + part)
            assert lead <= 0
        assert (one.norm, one.confidence) == ("linf", 1.0)


def guard(bundle: Bundle, **policy: Any) -> LiveGuard:
    return load_guard(bundle, Policy(**({"false_positive_rate": 0.05} | policy)))


def test_paranoia_four_accepts_only_what_is_certified(bundle: Bundle, network: Cnn) -> None:
    x, _ = held_out()
    x = x[240:]
    assert guard(bundle, paranoia=4).certified_radius == RADIUS / 2
    live = guard(bundle, paranoia=4, certified_radius=RADIUS)
    answer = live.screen(x.numpy(), [live.plan("")] * len(x))
    _, lead = certified(network, x, RADIUS)
    plain = guard(bundle)
    before = plain.screen(x.numpy(), [plain.plan("")] * len(x))
    seen = set()
    for row, (one, old) in enumerate(zip(answer.decisions, before.decisions, strict=True)):
        if old.verdict is Verdict.REJECT:
            assert one == old
        elif lead[row] > 0:
            assert one.verdict is Verdict.ACCEPT
        else:
            assert one.verdict is Verdict.REJECT
            assert one.reasons == (UNCERTIFIED,)
        seen.add(one.verdict)
    assert seen == {Verdict.ACCEPT, Verdict.REJECT}


def test_half_the_radius_at_both_ends_is_enough(bundle: Bundle, network: Cnn) -> None:
    """An accepted forgery of an accepted row has its class, whatever made it (Tramèr 2022)."""
    x, _ = held_out()
    live = guard(bundle, paranoia=4, certified_radius=RADIUS)
    model = logits(network)

    def accepted(points: Tensor) -> tuple[np.ndarray, np.ndarray]:
        answer = live.screen(points.numpy(), [live.plan("")] * len(points))
        kept = [one.verdict is Verdict.ACCEPT for one in answer.decisions]
        return np.array(kept), answer.outputs.argmax(axis=1)

    clean, label = accepted(x)
    for seed in range(3):
        forged = AutoPGD(2 * RADIUS, 30, loss=dlr)(model, x, torch.from_numpy(label), seed=seed)
        passed, said = accepted(forged)
        both = clean & passed
        assert np.array_equal(said[both], label[both])
        # The bare network is fooled on some of them: it is the demand that holds.
    _, bare = accepted(forged)
    assert (bare[clean] != label[clean]).any()


def test_monitor_mode_flags_and_a_fault_is_a_fault(bundle: Bundle) -> None:
    x, _ = held_out()
    rows = x[240:300].numpy()
    live = guard(bundle, paranoia=4, mode="monitor", certified_radius=RADIUS)
    found = {one.verdict for one in live.screen(rows, [live.plan("")] * 60).decisions}
    assert found == {Verdict.ACCEPT, Verdict.FLAG}

    class Fails(CompiledGuard):
        def certify(self, wire: Any, radius: Any) -> Any:
            raise RuntimeError("no certificate today")

    sound = guard(bundle, paranoia=4)
    broken = LiveGuard(
        Fails(bundle.files), sound.calibration, sound.policy, model="bounded",
        log_outputs=False, radius=RADIUS,
    )  # fmt: skip
    answer = broken.screen(rows, [broken.plan("")] * 60)
    assert {one.verdict for one in answer.decisions if one.fault} == {Verdict.REJECT}
    with pytest.raises(ConfigError, match="on_fault must be 'reject'"):
        Policy.parse('paranoia = 4\non_fault = "accept"')


def test_what_cannot_certify_says_so(tiny: Bundle, bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match="paranoia: 4 needs certificates"):
        guard(tiny, paranoia=4)
    with pytest.raises(ConfigError, match="cannot be bounded"):
        CompiledGuard(tiny.files).certify(np.zeros((1, 3, 32, 32), np.float32), np.zeros(1))
    sound = guard(bundle)
    with pytest.raises(ConfigError, match="certified_radius: missing"):
        LiveGuard(
            sound.compiled, sound.calibration, Policy(false_positive_rate=0.05, paranoia=4),
            model="bounded", log_outputs=False,
        )  # fmt: skip


def test_another_convolution_is_refused() -> None:
    with pytest.raises(TypeError, match="plain convolutions"):
        affine(box(torch.rand(1, 2, 8, 8), 0.1), nn.Conv2d(2, 2, 3, groups=2))


def test_an_evaluation_counts_what_is_proven_and_what_breaks_it(bundle: Bundle) -> None:
    x, y = held_out()
    request = Request("static", "linf", RADIUS, rate=0.05, steps=5, queries=10)

    def evaluated(target: BundleTarget, folder: Path) -> dict[str, Any]:
        return evaluate(target, x[240:264].numpy(), y[240:264].numpy(), request, folder).result

    with tempfile.TemporaryDirectory() as folder:
        sound = evaluated(BundleTarget(bundle), Path(folder))
    found = sound["certified"]
    assert found["violations"] == 0
    bounded = sum(one["bounded"] for one in sound["attacks"])
    assert found["tries"] % bounded == 0
    assert found["accuracy"]["value"] * 24 * bounded <= found["tries"] <= 24 * bounded
    assert 0 < found["accuracy"]["value"] <= sound["worst_case"]["bare_robust_accuracy"]
    four = found["paranoia_4"]
    assert four["accepted_and_correct"] == four["robust_accuracy"]
    assert not any("CERTIFICATE" in line for line in sound["warnings"])

    class Boasts(BundleTarget):
        """Certifies everything."""

        def victim(self, rate: float) -> Victim:
            honest = super().victim(rate)
            honest.leads = lambda x, radius: np.ones(len(x), np.float32)  # type: ignore[method-assign]
            return honest

    with tempfile.TemporaryDirectory() as folder:
        boasted = evaluated(Boasts(bundle), Path(folder))
    assert boasted["certified"]["violations"] > 0
    assert boasted["warnings"][0].startswith("CERTIFICATE BROKEN")


def test_a_certificate_graph_of_another_network_fails_the_self_test(bundle: Bundle) -> None:
    spec = NetworkSpec(width=8, hidden=64)
    other = make_network(spec, (1, 8, 8), 10, 9).eval()
    guard_spec = bundle.manifest.guard
    graphs = compile_embedded(assemble(guard_spec, Registry.discover(), other), SPEC)
    mixed = dict(bundle.files) | {"certificate.onnx": graphs["certificate.onnx"]}
    read_selftest(bundle).run(CompiledGuard(bundle.files))
    with pytest.raises(ParityError, match="leads differ"):
        read_selftest(bundle).run(CompiledGuard(mixed))


def test_a_graph_without_its_slack_is_not_built(
    network: Cnn, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an exporter makes it that takes a factor near 1 for 1."""
    live = assemble(bundle.manifest.guard, Registry.discover(), network)
    check_parity(live, CompiledGuard(compile_embedded(live, SPEC)), SPEC)
    exported = Cnn.leads

    def careless(self: Cnn, *arguments: Any, rounding: bool = False) -> Tensor:
        return exported(self, *arguments, rounding=False)

    monkeypatch.setattr(Cnn, "leads", careless)
    graphs = compile_embedded(live, SPEC)
    monkeypatch.undo()
    with pytest.raises(ParityError, match="certificates at batch 1: differ"):
        check_parity(live, CompiledGuard(graphs), SPEC)


def test_the_wires_own_rounding_is_covered() -> None:
    """Images within the radius on a wire far from zero are within the box."""
    spec = InputSpec(channels=1, height=8, width=8, low=1000.0, high=1255.0)
    module = Certificate(make_network(NetworkSpec(), (1, 8, 8), 10, 0), None, spec)  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 246, (400, 1, 8, 8))
    near = pixels + rng.integers(0, 11, pixels.shape)
    wire = [torch.from_numpy((one + 1000).astype(np.float32)) for one in (pixels, near)]
    x, moved = (module.wire(one) for one in wire)
    within = box(x, 10 / 255 + module.hair, rounding=True)
    assert ((moved >= within.lower) & (moved <= within.upper)).all()


def test_bundles_are_written(bundle: Bundle, tiny: Bundle, tmp_path: Path) -> None:
    assert "certificate.onnx" in bundle.files
    assert "certificate.onnx" not in tiny.files
