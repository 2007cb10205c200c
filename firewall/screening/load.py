"""Open a guard from a checked bundle."""

from __future__ import annotations

from firewall.bundle.store import Bundle
from firewall.bundle.versions import check_version
from firewall.errors import BundleMalformed, ConfigError
from firewall.screening.calibration import Calibration
from firewall.screening.classifier import SeparateClassifier
from firewall.screening.compiled import CompiledGuard, GuardGraphs
from firewall.screening.live import LiveGuard
from firewall.screening.local_model import MODEL, LocalModel
from firewall.screening.policy import Policy
from firewall.screening.preprocess import NUMPY_DTYPES
from firewall.screening.scores import Scores
from firewall.screening.selftest import SelfTest
from firewall.screening.session import Device
from firewall.screening.smoothing import Smoothing
from firewall.screening.split import SplitGuard


def load_guard(
    bundle: Bundle,
    policy: Policy,
    *,
    threads: int = 0,
    device: Device = "cpu",
    classifier: SeparateClassifier | None = None,
) -> LiveGuard:
    """Open a guard from a checked bundle.

    Args:
        bundle: the bundle.
        policy: the operator's policy.
        threads: threads per inference session (0 = one per core).
        device: `cpu` or `cuda`.
        classifier: the classifier of a bundle that has none inside.

    Raises:
        BundleVersionTooOld: the bundle is older than `min_version` of the policy.
        BundleError: a graph is refused, or the calibration does not fit the manifest.
        ConfigError: the policy asks for something that the bundle does not have.
        CalibrationError: the policy asks for a rate that cannot be promised.

    """
    manifest = bundle.manifest
    check_version(None, manifest.version, policy.min_version, allow_downgrade=False)
    remote = manifest.classifier.kind == "remote"
    if remote and classifier is None:
        raise ConfigError(
            f"bundle {manifest.name!r} has no classifier of its own; say where it is served with "
            "--upstream grpc://host:port/model or http://host:port/v2/models/NAME"
        )
    if not remote and classifier is not None:
        raise ConfigError(
            f"--upstream: bundle {manifest.name!r} has its classifier inside; leave the flag out"
        )
    calibration = Calibration.from_json(bundle.files["calibration.json"])
    detectors = {stage.name for stage in manifest.guard.of("detector")}
    if set(calibration.detectors) != detectors:
        raise BundleMalformed(
            f"calibration.json: detectors {', '.join(calibration.detectors)}; the manifest has "
            f"{', '.join(sorted(detectors))}"
        )
    _ = bundle.labels  # raises where their number is wrong
    read_selftest(bundle)
    read_smoothing(bundle)
    return LiveGuard(
        open_graphs(bundle, threads=threads, device=device, classifier=classifier),
        calibration,
        policy,
        model=manifest.name,
        log_outputs=bool(manifest.guard.of("ensemble")),
        scores=None if manifest.classifier.kind == "embedded" else Scores.of(manifest),
        radius=manifest.threat_model.radius if manifest.threat_model.norm == "linf" else 0.0,
        promised_rate=manifest.promised_rate,
    )


def open_graphs(
    bundle: Bundle,
    *,
    threads: int = 0,
    device: Device = "cpu",
    classifier: SeparateClassifier | None = None,
) -> GuardGraphs:
    """Open the graphs of a checked bundle; arguments and errors as of `load_guard`."""
    manifest = bundle.manifest
    if manifest.classifier.kind == "embedded":
        return CompiledGuard(bundle.files, threads=threads, device=device)
    if classifier is None:
        classifier = LocalModel(
            bundle.files[MODEL],
            scores=manifest.output,
            taps=manifest.classifier.taps,
            others=[one.name for one in manifest.other_outputs],
            threads=threads,
            device=device,
        )
    expensive = "expensive.onnx" in bundle.files
    _check_files(bundle, *(["views.onnx"] if manifest.guard.of("denoiser") and expensive else []))
    _check_files(bundle, *([] if expensive else ["cheap.onnx"]))
    return SplitGuard(
        bundle.files,
        classifier,
        manifest.input,
        Scores.of(manifest),
        threads=threads,
        device=device,
    )


def _check_files(bundle: Bundle, *names: str) -> None:
    missing = [name for name in names if name not in bundle.files]
    if missing:
        raise BundleMalformed(
            f"{missing[0]}: missing; the bundle was made by another version of this program. "
            "Make it anew with firewall guard"
        )


def read_selftest(bundle: Bundle) -> SelfTest:
    """Read the self-test of a bundle.

    Raises:
        BundleMalformed: the self-test does not fit the manifest.

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
    """Read the smoothing table of a bundle; None where it has none.

    Raises:
        BundleMalformed: `smoothing.json` is malformed.

    """
    text = bundle.files.get("smoothing.json")
    return None if text is None else Smoothing.from_json(text)
