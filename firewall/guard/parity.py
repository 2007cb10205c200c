"""The gate between torch and ONNX: what is served must be what was assembled."""

from __future__ import annotations

import numpy as np
import torch

from firewall.bundle.spec import InputSpec
from firewall.errors import ParityError
from firewall.guard.classifier import Bounded, Classifier
from firewall.guard.compile import example
from firewall.guard.graph import Guard
from firewall.guard.interval import least_lead
from firewall.guard.wire_input import WireInput
from firewall.screening.compiled import CompiledGuard
from firewall.stages import Denoiser

#: Rows compared: one, few, and a number that is neither a power of two nor what was traced.
BATCHES = (1, 2, 17)
#: Largest deviations: a deep network rounds differently in ONNX, by parts in a million.
RELATIVE = 1e-3
ABSOLUTE = 1e-4


def check_parity(guard: Guard, compiled: CompiledGuard, spec: InputSpec) -> float:
    """Compare on noise; returns the largest absolute deviation found.

    Raises:
        ParityError: naming output and batch.

    """
    worst = 0.0
    for rows in BATCHES:
        wire = example(spec, rows, seed=rows)
        with torch.no_grad():
            expected = guard(WireInput(spec)(wire))
        found = compiled.both(wire.numpy(), batch=rows)
        for name, want, got in zip(
            ("log_probabilities", "statistics"), expected, found, strict=True
        ):
            reference = want.numpy()
            if reference.shape != got.shape:
                raise ParityError(
                    f"{name} at batch {rows}: shape {got.shape}, in torch {reference.shape}"
                )
            gap = float(np.abs(reference - got).max(initial=0.0))
            if not np.allclose(reference, got, rtol=RELATIVE, atol=ABSOLUTE):
                raise ParityError(f"{name} at batch {rows}: differ by {gap:.3g} from torch")
            worst = max(worst, gap)
        if isinstance(guard.classifier, Bounded):
            worst = max(worst, _check_leads(guard.classifier, compiled, spec, rows))
    return worst


def check_denoised(
    classifier: Classifier, denoiser: Denoiser, compiled: CompiledGuard, spec: InputSpec
) -> None:
    """The classes by which noisy copies vote, as served against torch's.

    Raises:
        ParityError: naming the batch.

    """
    for rows in BATCHES:
        wire = example(spec, rows, seed=rows)
        with torch.no_grad():
            logits = classifier(denoiser(WireInput(spec)(wire))).logits
        top = logits.topk(2, dim=1).values
        # Rounding may swap what is all but equal.
        clear = (top[:, 0] - top[:, 1] > ABSOLUTE + RELATIVE * top[:, 0].abs()).numpy()
        found = compiled.smoothed(wire.numpy())
        if not (found == logits.argmax(dim=1).numpy())[clear].all():
            raise ParityError(f"smoothing at batch {rows}: another class than torch's")


def _check_leads(classifier: Bounded, compiled: CompiledGuard, spec: InputSpec, rows: int) -> float:
    """Certificates as served against torch's; a graph that lost its slack is above them."""
    wire = example(spec, rows, seed=rows)
    x = WireInput(spec)(wire)
    worst = 0.0
    for radius in (0.0, 0.01, 0.1):
        label, lead = compiled.certify(wire.numpy(), np.full(rows, radius, np.float32))
        with torch.no_grad():
            chosen = torch.from_numpy(label)
            leads = classifier.leads(x, radius, chosen, rounding=True)
            expected = least_lead(leads, chosen).numpy()
            plain = least_lead(classifier.leads(x, radius, chosen), chosen).numpy()
        gap = float(np.abs(lead - expected).max())
        # Nearer to the bound with its slack than to the one without.
        if not (np.abs(lead - expected) <= 0.25 * np.abs(plain - expected) + 1e-4).all():
            raise ParityError(f"certificates at batch {rows}: differ by {gap:.3g} from torch")
        worst = max(worst, gap)
    return worst
