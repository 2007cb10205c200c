"""What a guard says about a row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
import numpy.typing as npt

from firewall.screening.span import Span


class Verdict(Enum):
    """`FLAG` is monitor mode: would have been rejected, and is answered."""

    ACCEPT = "accept"
    REJECT = "reject"
    FLAG = "flag"


#: Reason of a row whose stages failed.
FAULT = "fault"
#: Reason of a row that carries no certificate where the policy demands one.
UNCERTIFIED = "uncertified"


@dataclass(frozen=True)
class Decision:
    """About one row.

    Attributes:
        verdict: what happens to it.
        reasons: detectors that spoke against it, the strongest first; `("fault",)` for a fault,
            `("uncertified",)` where only a certificate was missing.
        p_value: conformal, in (0, 1]; None when it was not screened or a stage failed.
        score: what the p-value ranks; higher is more suspicious, and it still orders rows that
            are all beyond the calibration data. None where the p-value is.
        statistics: by detector, of the tiers that ran.
        escalated: whether the expensive tier ran.

    """

    verdict: Verdict
    reasons: tuple[str, ...] = ()
    p_value: float | None = None
    score: float | None = None
    statistics: Mapping[str, float] = field(default_factory=dict)
    escalated: bool = False

    @property
    def fault(self) -> bool:
        """Whether a stage failed on this row."""
        return self.reasons == (FAULT,)


@dataclass(frozen=True)
class Answer:
    """About a batch: one decision a row and the classifier's outputs [N, K] float32.

    The outputs are the classifier's logits, or log-probabilities when the guard has an ensemble.
    Rows that are rejected have outputs too: who answers a client leaves them out.
    `spans` are of the batch that the rows were in.
    """

    decisions: tuple[Decision, ...]
    outputs: npt.NDArray[np.float32]
    spans: tuple[Span, ...] = ()
