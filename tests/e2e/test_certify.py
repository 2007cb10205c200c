"""`Certify` and paranoia 4 over the wire."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch

from firewall.bundle.signing import Signer
from firewall.bundle.store import open_bundle
from firewall.client import AsyncClient, Certificate, Certified, Client
from firewall.errors import FirewallError, InvalidInput, Unsupported
from firewall.screening.certificate import interval_certificates
from firewall.screening.compiled import CompiledGuard
from firewall.screening.verdict import Verdict
from firewall.train.fit_network import Images, Phase, Schedule, fit_network
from firewall.train.networks import NetworkSpec, make_network
from firewall.train.objectives import Standard
from firewall.train.smoothing_table import SmoothingDenoiser, SmoothingSpec, tabulate
from tests.support.bounded import RADIUS, SPEC, build_bounded, digits, fit_bounded, held_out
from tests.support.served import served
from tests.support.tiny import build_tiny, wire


@pytest.fixture(scope="module")
def bounded_path(signer: Signer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = fit_bounded(tmp_path_factory.mktemp("network"))
    return build_bounded(tmp_path_factory.mktemp("bundle") / "bounded", signer, network)


def test_certificates_over_the_wire(bounded_path: Path, signer: Signer, tmp_path: Path) -> None:
    rows = held_out()[0][300:320].numpy()
    compiled = CompiledGuard(open_bundle(bounded_path, {signer.public}).files)
    expected = interval_certificates(compiled, rows, 2 * RADIUS)
    with (
        served(bounded_path, signer, tmp_path, "--false-positive-rate", "0.05") as running,
        Client(running.address) as client,
    ):
        found = client.certify(rows)
        verdicts = [one.verdict for one in client.predict(rows)]
        for got, want, verdict in zip(found, expected, verdicts, strict=True):
            refused = verdict is Verdict.REJECT
            sure = None if refused else Certificate(want.label, "linf", want.radius, 1.0)
            assert got == Certified(sure, None)
        assert any(one.bounded and one.bounded.radius > 0 for one in found)

        async def asked() -> list[Certified]:
            async with AsyncClient(running.address) as other:
                return await other.certify(rows)

        assert asyncio.run(asked()) == found
        with pytest.raises(InvalidInput, match=r"input\.tensor\.shape"):
            client.certify(rows[:, :, :4])


def test_smoothing_over_the_wire(signer: Signer, tmp_path: Path) -> None:
    denoiser = SmoothingDenoiser(plugin="gaussian-blur")
    smoothing = SmoothingSpec(sigma=0.1, selection=20, draws=100, failure=0.01, denoiser=denoiser)
    path = build_tiny(tmp_path / "tiny", signer, smoothing=smoothing)
    with (
        served(path, signer, tmp_path, "--false-positive-rate", "0.05") as running,
        Client(running.address) as client,
    ):
        found = client.certify(wire(3, 20))
    assert any(one.smoothed for one in found)
    for one in found:
        assert one.bounded is None
        if one.smoothed is None:
            continue
        assert (one.smoothed.norm, one.smoothed.confidence) == ("l2", 0.99)
        assert 0 <= one.smoothed.radius <= max(tabulate(smoothing).radii)


@pytest.mark.slow
def test_a_denoiser_before_the_vote(signer: Signer, tmp_path: Path) -> None:
    """It learns noise of the classifier's own images, and certifies what the bare one cannot."""
    x, y = digits()
    pixels, labels = torch.from_numpy(x[:1000]), torch.from_numpy(y[:1000])
    network = make_network(NetworkSpec(width=8, hidden=64), (1, 8, 8), 10, 0)
    schedule = Schedule(phases=(Phase(Standard(), 8),), radius=RADIUS, batch=25, rate=2e-3)
    fit_network(network, Images(pixels, labels), Images(pixels[:50], labels[:50]), schedule,
                tmp_path / "state", seed=0)  # fmt: skip
    radii: dict[bool, float] = {}
    rows = held_out()[0][300:330].numpy()
    for denoised in (False, True):
        smoothing = SmoothingSpec(
            sigma=0.5, selection=50, draws=200, failure=0.01,
            denoiser=SmoothingDenoiser(plugin="learned", config={
                "goal": "logits", "corruption": "noise", "sigma": 0.5, "epochs": 12,
            }) if denoised else None,
        )  # fmt: skip
        path = build_bounded(tmp_path / f"bundle-{denoised}", signer, network,
                             smoothing=smoothing, fitted_on=1000)  # fmt: skip
        bundle = open_bundle(path, {signer.public})
        assert ("smoothed.onnx" in bundle.files) is denoised
        # No view of the guard: that one is not changed by it.
        assert [stage.kind for stage in bundle.manifest.guard.stages] == ["detector"]
        assert bool(bundle.manifest.provenance.fitted.get("smoothing.denoiser")) is denoised
        found = tabulate(smoothing).certify(
            CompiledGuard(bundle.files).smoothed, rows, SPEC, np.random.default_rng(0)
        )
        radii[denoised] = float(np.mean([one.radius for one in found]))
    assert radii[True] > 1.1 * radii[False] > 0


def test_paranoia_four_over_the_wire(bounded_path: Path, signer: Signer, tmp_path: Path) -> None:
    rows = held_out()[0][300:320].numpy()
    compiled = CompiledGuard(open_bundle(bounded_path, {signer.public}).files)
    radii = sorted(one.radius for one in interval_certificates(compiled, rows, 2 * RADIUS))
    policy = tmp_path / "policy.toml"
    # Halfway: some rows have it, some have not.
    policy.write_text(
        f"paranoia = 4\nfalse_positive_rate = 0.05\ncertified_radius = {radii[10] + 1e-4}\n"
    )
    with (
        served(bounded_path, signer, tmp_path, "--policy", str(policy)) as running,
        Client(running.address) as client,
    ):
        found = client.predict(rows)
        reasons = {one.reasons for one in found if one.verdict is Verdict.REJECT}
        assert ("uncertified",) in reasons


def test_a_policy_may_leave_certificates_unsaid(
    bounded_path: Path, signer: Signer, tmp_path: Path
) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text("certify = false\nfalse_positive_rate = 0.05\n")
    with (
        served(bounded_path, signer, tmp_path, "--policy", str(policy)) as running,
        Client(running.address) as client,
        pytest.raises(Unsupported, match="issues no certificates"),
    ):
        client.certify(held_out()[0][:1].numpy())


def test_a_bundle_without_certificates_says_so(
    tiny_path: Path, signer: Signer, tmp_path: Path
) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text("paranoia = 4\nfalse_positive_rate = 0.05\n")
    with (
        pytest.raises(AssertionError, match="paranoia: 4 needs certificates"),
        served(tiny_path, signer, tmp_path, "--policy", str(policy)),
    ):
        pass


def test_nobody_answers() -> None:
    with Client("127.0.0.1:1", timeout=5) as client, pytest.raises(FirewallError):
        client.certify(held_out()[0][:1].numpy())
