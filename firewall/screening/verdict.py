"""What a guard says about a row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

from firewall.screening.scores import log_softmax
from firewall.screening.span import Span


class Verdict(Enum):
    """`FLAG` is answered, though it looks adversarial: in monitor mode, or by such a monitor."""

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
    """About a batch of N rows.

    Rows that are rejected have outputs too: who answers a client leaves them out.

    Attributes:
        decisions: one a row.
        outputs: [N, *score shape], the class scores as the classifier answers them: with an
            ensemble, its own in place of the classifier's.
        logits: [N, K] of the same, whatever the classifier answers.
        others: by name, further outputs of the classifier, [N, ...]; empty where the policy
            withholds them.
        spans: of the batch that the rows were in.

    """

    decisions: tuple[Decision, ...]
    outputs: npt.NDArray[Any]
    logits: npt.NDArray[np.float32]
    others: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    spans: tuple[Span, ...] = ()

    @property
    def log_probabilities(self) -> npt.NDArray[np.float32]:
        """Log-probabilities of `logits`, [N, K]; NaN in a row that is not finite."""
        return log_softmax(self.logits)

    @property
    def classes(self) -> npt.NDArray[np.intp]:
        """[N]: the top class of each row."""
        top: npt.NDArray[np.intp] = self.logits.argmax(axis=1)
        return top

    def part(self, first: int, last: int) -> Answer:
        """The rows from `first` to before `last`."""
        return Answer(
            self.decisions[first:last],
            self.outputs[first:last],
            self.logits[first:last],
            {name: values[first:last] for name, values in self.others.items()},
            self.spans,
        )
