"""Open a guard from a checked bundle."""

from __future__ import annotations

from firewall.bundle.store import Bundle
from firewall.errors import BundleMalformed, ConfigError
from firewall.screening.calibration import Calibration
from firewall.screening.compiled import CompiledGuard, GuardGraphs
from firewall.screening.live import LiveGuard
from firewall.screening.policy import Policy
from firewall.screening.preprocess import NUMPY_DTYPES
from firewall.screening.remote import RemoteClassifier, RemoteGuard, RemoteSpec
from firewall.screening.selftest import SelfTest
from firewall.screening.session import Device
from firewall.screening.smoothing import Smoothing


def load_guard(
    bundle: Bundle,
    policy: Policy,
    *,
    threads: int = 0,
    device: Device = "cpu",
    classifier: RemoteClassifier | None = None,
) -> LiveGuard:
    """A guard from a checked bundle.

    Args:
        bundle: checked.
        policy: what the operator wants.
        threads: of one inference; 0 is one a core.
        device: `cpu` or `cuda`.
        classifier: served elsewhere, of a bundle without one.

    Raises:
        BundleError: a graph or the calibration does not fit the manifest.
        ConfigError: the policy asks for what the bundle does not have.
        CalibrationError: the policy asks for a rate that cannot be promised.

    """
    manifest = bundle.manifest
    remote = manifest.classifier.kind == "remote"
    if remote and classifier is None:
        raise ConfigError(
            f"bundle {manifest.name!r} has no classifier of its own; say where it is served with "
            "--upstream grpc://host:port/model"
        )
    if not remote and classifier is not None:
        raise ConfigError(
            f"--upstream: bundle {manifest.name!r} has its classifier inside; leave it out"
        )
    calibration = Calibration.from_json(bundle.files["calibration.json"])
    detectors = {stage.name for stage in manifest.guard.of("detector")}
    if set(calibration.detectors) != detectors:
        raise BundleMalformed(
            f"calibration.json: detectors {', '.join(calibration.detectors)}; the manifest has "
            f"{', '.join(sorted(detectors))}"
        )
    _ = bundle.labels  # of the right number, or an error now
    read_selftest(bundle)
    read_smoothing(bundle)
    compiled: GuardGraphs
    if classifier is not None:
        compiled = RemoteGuard(
            bundle.files,
            RemoteSpec.from_json(bundle.files["remote.json"]),
            calibration.detectors,
            calibration.cheap,
            classifier,
            threads=threads,
            device=device,
        )
    else:
        compiled = CompiledGuard(bundle.files, threads=threads, device=device)
    return LiveGuard(
        compiled,
        calibration,
        policy,
        model=manifest.name,
        log_outputs=bool(manifest.guard.of("ensemble")),
        radius=manifest.threat_model.radius if manifest.threat_model.norm == "linf" else 0.0,
    )


def read_selftest(bundle: Bundle) -> SelfTest:
    """The self-test of a bundle.

    Raises:
        BundleMalformed: it does not fit the manifest.

    """
    stored = SelfTest.from_npz(bundle.files["selftest.npz"])
    spec = bundle.manifest.input
    if (
        stored.wire.ndim != 4
        or not len(stored.wire)
        or stored.wire.shape[1:] != spec.shape
        or stored.wire.dtype != NUMPY_DTYPES[spec.datatype]
    ):
        raise BundleMalformed(
            f"selftest.npz: wire is {stored.wire.dtype} {list(stored.wire.shape)}; expected rows "
            f"of {spec.datatype} {list(spec.shape)}"
        )
    return stored


def read_smoothing(bundle: Bundle) -> Smoothing | None:
    """How the bundle smooths, if it does.

    Raises:
        BundleMalformed: `smoothing.json` is none.

    """
    text = bundle.files.get("smoothing.json")
    return None if text is None else Smoothing.from_json(text)
