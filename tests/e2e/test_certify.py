"""`Certify` and paranoia 4 over the wire."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from firewall.bundle.signing import Signer
from firewall.bundle.store import open_bundle
from firewall.client import AsyncClient, Certificate, Certified, Client
from firewall.errors import FirewallError, InvalidInput, Unsupported
from firewall.guard.certificate import interval_certificates
from firewall.guard.compiled import CompiledGuard
from firewall.guard.verdict import Verdict
from firewall.train.smoothing_table import SmoothingSpec, tabulate
from tests.support.bounded import RADIUS, build_bounded, fit_bounded, held_out
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
    smoothing = SmoothingSpec(sigma=0.1, selection=20, draws=100, failure=0.01)
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
