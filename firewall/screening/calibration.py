"""Conformal calibration of a guard's statistics.

Clean calibration data comes in two parts. Part A gives each detector a reference distribution, by
which any statistic becomes a p-value; the p-values of a tier are combined into one number, and the
two tiers by a cascade. Whatever that combination is, it is one number a row, computed without part
B; so its rank among the rows of part B is a p-value that is valid in finite samples for any row
that is exchangeable with them (Vovk, Gammerman, Shafer, "Algorithmic Learning in a Random World",
2005; Bates et al., "Testing for outliers with conformal p-values", 2023): over draws of
calibration data and a clean row, P(p <= rate) <= rate.

Rows of part B that were made of one photograph are not independent of each other. Where their
photographs are named, the unit of the promise is the photograph: each weighs one, however many
rows it has, and P(p <= rate) <= rate over draws of photographs and of a row of a new one
(hierarchical conformal prediction; Lee, Barber, Willett 2023, arXiv:2306.06342, theorem 1).

The statistics of both parts are kept whole. So a policy that leaves a detector out gets its own
cascade from the same data, and keeps the promise.

The promise is about all rows together, or about the rows of each class that the classifier names
(a Mondrian predictor, in Vovk's words): then no class carries the false positives of the others.
That takes part B's rows of that class to be enough; classes of few rows share one promise.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from firewall.documents import parse_json
from firewall.errors import BundleMalformed, CalibrationError, SampleTooSmall
from firewall.screening.row_rule import CAP, Column, Ranks, RowRule

Doubles = npt.NDArray[np.float64]
Booleans = npt.NDArray[np.bool_]
Classes = npt.NDArray[np.int64]

#: How statistics become one number. `fisher`: -sum(log p), for many detectors that each see little
#: (Fisher 1925). `harmonic`: -log of their harmonic mean, for one that sees all of it among others
#: that see nothing (Wilson 2019, doi 10.1073/pnas.1814092116): in a sum the others drown it, since
#: a p-value cannot be less than one over the calibration rows. `learnt`: a sum of -log p with
#: weights from forgeries, where -log p goes on in a straight line above part A's 90th percentile,
#: as it does where the tail is exponential. Each is calibrated again.
Combination = Literal["fisher", "harmonic", "learnt"]
#: Combinations that take no forgeries.
Untaught = Literal["fisher", "harmonic"]
#: Share of part A below which a learnt combination reads -log p from part A's ranks.
_BODY = 0.9


@dataclass(frozen=True)
class Weights:
    """Weights of a learnt combination, 0 or more, by detector.

    Attributes:
        cheap: [Dc] of the cheap detectors, where no other has spoken.
        every: [D] of all detectors.

    """

    cheap: tuple[float, ...]
    every: tuple[float, ...]


def least_sample(rate: float) -> int:
    """The smallest part B that can promise a false-positive rate: 1/(n + 1) <= rate."""
    return max(1, math.ceil(1.0 / rate - 1e-9) - 1)


def least_of_class(rate: float) -> int:
    """How many rows of a class each part takes for a promise of its own: three standard deviations
    over the least, so that the other part, drawn alike, will hold the least as well.
    """
    need = least_sample(rate)
    return need + math.ceil(3.0 * math.sqrt(2.0 * need))


@dataclass(frozen=True)
class Calibration:
    """Statistics of clean data by which p-values are made.

    Attributes:
        detectors: names, the cheap ones first.
        cheap: how many of them are cheap.
        part_a: [nA, D] statistics, the reference distributions.
        part_b: [nB, D] statistics, on which the combination is calibrated.
        escalation: the share of clean rows, in (0, 1], that the cheap tier hands on.
        guard_model: names of the detectors that ask a network of the guard's own.
        said_a: [nA] classes that the classifier names for part A, where the promise is by class.
        said_b: [nB], of part B.
        combination: of statistics.
        weights: of a learnt combination, else None.
        photographs: [nB] number of the photograph of each row of part B; None where each row is
            one of its own.

    """

    detectors: tuple[str, ...]
    cheap: int
    part_a: Doubles
    part_b: Doubles
    escalation: float
    guard_model: tuple[str, ...] = ()
    said_a: Classes | None = None
    said_b: Classes | None = None
    combination: Combination = "fisher"
    weights: Weights | None = None
    photographs: Classes | None = None

    def __post_init__(self) -> None:
        width = len(self.detectors)
        if self.combination not in ("fisher", "harmonic", "learnt"):
            raise CalibrationError(f"combination: {self.combination!r} is unknown")
        self._check_weights(width)
        if not 0 <= self.cheap <= width:
            raise CalibrationError(f"cheap: {self.cheap} of {width} detectors")
        if not 0 < self.escalation <= 1:
            raise CalibrationError(f"escalation: {self.escalation} is not in (0, 1]")
        for name, part in (("part_a", self.part_a), ("part_b", self.part_b)):
            if part.ndim != 2 or part.shape[1] != width or not len(part):
                raise CalibrationError(f"{name}: shape {part.shape}, expected (n > 0, {width})")
            if not np.isfinite(part).all():
                raise CalibrationError(f"{name}: holds a statistic that is not finite")
        if (self.said_a is None) != (self.said_b is None):
            raise CalibrationError("said_a, said_b: one is missing")
        for name, said, part in (
            ("said_a", self.said_a, self.part_a),
            ("said_b", self.said_b, self.part_b),
        ):
            if said is not None and (said.shape != (len(part),) or said.min() < 0):
                raise CalibrationError(f"{name}: expected a class for each of {len(part)} rows")

        if self.photographs is not None:
            if self.photographs.shape != (len(self.part_b),):
                raise CalibrationError(f"photographs: expected one for each of {len(self.part_b)}")
            if self.said_b is not None:
                raise CalibrationError("photographs: a promise by class is made of single rows")

    def _check_weights(self, width: int) -> None:
        if (self.combination == "learnt") != (self.weights is not None):
            raise CalibrationError("weights: a learnt combination has them, and no other")
        if self.weights is None:
            return
        for name, found, count in (
            ("cheap", self.weights.cheap, self.cheap),
            ("every", self.weights.every, width),
        ):
            if len(found) != count or not all(0 <= one < math.inf for one in found):
                raise CalibrationError(f"weights: {name} takes {count} numbers of 0 or more")

    @property
    def units(self) -> int:
        """How many photographs, or rows, the promise is made from."""
        return len(self.part_b if self.photographs is None else np.unique(self.photographs))

    @property
    def unit(self) -> str:
        """What `units` counts."""
        return "rows" if self.photographs is None else "photographs"

    @property
    def by_class(self) -> bool:
        """Whether the promise is made to each class."""
        return self.said_a is not None

    def to_json(self) -> bytes:
        """As it lies in a bundle."""
        body: dict[str, Any] = {
            "detectors": list(self.detectors),
            "cheap": self.cheap,
            "escalation": self.escalation,
            "combination": self.combination,
            "guard_model": list(self.guard_model),
            "part_a": self.part_a.tolist(),
            "part_b": self.part_b.tolist(),
        }
        if self.said_a is not None and self.said_b is not None:
            body |= {"said_a": self.said_a.tolist(), "said_b": self.said_b.tolist()}
        if self.weights is not None:
            body["weights"] = {
                "cheap": list(self.weights.cheap), "every": list(self.weights.every)
            }  # fmt: skip
        if self.photographs is not None:
            body["photographs"] = self.photographs.tolist()
        return json.dumps(body, allow_nan=False).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Calibration:
        """Read what `to_json` wrote.

        Raises:
            BundleMalformed: it is something else.

        """
        body = parse_json(text, "calibration.json")
        try:
            return cls(
                detectors=tuple(str(name) for name in body["detectors"]),
                cheap=int(body["cheap"]),
                part_a=np.asarray(body["part_a"], np.float64),
                part_b=np.asarray(body["part_b"], np.float64),
                escalation=float(body["escalation"]),
                guard_model=tuple(str(name) for name in body.get("guard_model", ())),
                said_a=_classes(body.get("said_a")),
                said_b=_classes(body.get("said_b")),
                combination=body.get("combination", "fisher"),
                weights=_weights(body.get("weights")),
                photographs=_classes(body.get("photographs")),
            )
        except (
            KeyError,
            TypeError,
            ValueError,
            OverflowError,
            CalibrationError,
        ) as error:
            raise BundleMalformed(f"calibration.json: {error}") from error

    def up_to(self, paranoia: int) -> tuple[str, ...]:
        """Names of the detectors that count at a level of paranoia: 1 is without views, 2 without
        networks of the guard's own, 3 and more with all of them.
        """
        kept = self.detectors[: self.cheap] if paranoia == 1 else self.detectors
        return tuple(name for name in kept if paranoia > 2 or name not in self.guard_model)

    def promise(self, rate: float) -> None:
        """Refuse a rate that part B is too small to promise.

        Raises:
            SampleTooSmall: with the size that would do.

        """
        need = least_sample(rate)
        have = self.units
        if have < need:
            raise SampleTooSmall(
                f"false_positive_rate: {rate:g} cannot be promised from {have} calibration "
                f"{self.unit}; "
                f"it takes {need} in the second part (the least this sample can promise is "
                f"{1 / (have + 1):.3g})"
            )

    def cascade(self, rate: float, active: Collection[str] | None = None) -> Cascade:
        """The decision rule for a rate and a set of detectors (all when None).

        Raises:
            SampleTooSmall: part B cannot promise the rate.
            CalibrationError: no detector is active, or the rate is over the escalated share.

        """
        self.promise(rate)
        keep = [n for n, name in enumerate(self.detectors) if active is None or name in active]
        if not keep:
            raise CalibrationError("detectors: the policy leaves none active; use mode = 'off'")
        return Cascade(self, keep, rate)

    def groups(self, rate: float) -> Classes:
        """Which classes share a promise at a rate.

        A class has its own when part A holds `least_of_class` of it. The others share one, and take
        the rarest classes that could stand alone with them until they are as many. Part B is not
        looked at: its ranks stay exchangeable with a new row's.

        Returns:
            [highest class + 2] group of each class, from 0; the last stands for all classes beyond.

        """
        if self.said_a is None:
            return np.zeros(1, np.int64)
        assert self.said_b is not None
        # Part B may be larger or smaller than part A.
        share = len(self.part_b) / len(self.part_a)
        enough = least_of_class(rate)
        count = np.bincount(self.said_a, minlength=int(self.said_b.max()) + 2) * share
        order = np.argsort(count, kind="stable")
        rest, shared = 0.0, 0
        while shared < len(order) and (rest < enough or count[order[shared]] < enough):
            rest += float(count[order[shared]])
            shared += 1
        group = np.zeros(len(count), np.int64)
        group[order[shared:]] = 1 + np.arange(len(order) - shared)
        return group

    def least_group(self, rate: float) -> int:
        """Units of part B by which p-values are ranked, at least."""
        if self.said_b is None:
            return self.units
        groups = self.groups(rate)
        own = groups[np.minimum(self.said_b, len(groups) - 1)]
        return int(np.bincount(own, minlength=int(groups.max()) + 1).min())


def _weights(found: Any) -> Weights | None:
    if found is None:
        return None
    return Weights(*(tuple(float(one) for one in found[name]) for name in ("cheap", "every")))


def _classes(found: object) -> Classes | None:
    return None if found is None else np.asarray(found, np.int64)


class Cascade:
    """A decision rule: cheap statistics, then all of them for the doubtful, then one p-value."""

    def __init__(self, calibration: Calibration, columns: Sequence[int], rate: float) -> None:
        self.names = tuple(calibration.detectors[column] for column in columns)
        self.rate = rate
        self._combination = calibration.combination
        self._reference = np.sort(calibration.part_a, axis=0)
        self._table = self._make_table()
        cheap = [column for column in columns if column < calibration.cheap]
        weights = calibration.weights
        self._cheap = self._columns(cheap, None if weights is None else weights.cheap)
        self._every = self._columns(columns, None if weights is None else weights.every)
        #: False when every active detector is cheap.
        self.has_expensive = len(self._every) > len(self._cheap)
        doubt = self.doubt(calibration.part_a[:, : calibration.cheap])
        # With no cheap detector active there is nothing to tell rows apart by: all escalate.
        self._threshold = (
            float(np.quantile(doubt, 1.0 - calibration.escalation, method="lower"))
            if self._cheap
            else -math.inf
        )
        clean = calibration.part_b
        doubt = self.doubt(clean[:, : calibration.cheap])
        escalated = self.escalates(doubt)
        scores = self.scores(doubt, escalated, clean[escalated])
        self._group = calibration.groups(rate)
        said = np.zeros(len(clean), np.int64) if calibration.said_b is None else calibration.said_b
        group = self._group_of(said)
        unit = _unit_weights(calibration)
        self._ranks = [
            _ranks(scores[group == one], unit[group == one]) for one in range(self._group.max() + 1)
        ]
        #: The same for one row at a time.
        self.rule = RowRule(
            self._cheap,
            self._every,
            harmonic=self._combination == "harmonic",
            threshold=self._threshold if self.has_expensive else math.inf,
            groups=self._group.tolist(),
            ranks=self._ranks,
        )
        #: The share of part B that the cheap tier hands on.
        self.escalated_share = float((escalated * unit).sum() / unit.sum())
        if self.has_expensive and rate > self.escalated_share:
            raise CalibrationError(
                f"false_positive_rate: {rate:g} is over the {self.escalated_share:.3g} of clean "
                "rows that reach the expensive tier; choose a lower rate or recalibrate with a "
                "larger escalation"
            )

    @property
    def doubt_ceilings(self) -> Doubles:
        """Doubt below which a row is accepted without the expensive tier, by class as below."""
        if self.has_expensive:
            return np.full(len(self._group), self._threshold)
        # Nothing is expensive: scores are s = doubt / (1 + doubt), one less than a ceiling says.
        score = 1.0 + self.score_ceilings
        with np.errstate(invalid="ignore"):
            return np.where(score < 1.0, score / (1.0 - score), math.inf)

    @property
    def score_ceilings(self) -> Doubles:
        """Combination of all active detectors below which an escalated row is accepted, by the
        class that the classifier names; the last entry stands for all classes beyond.
        """
        ceilings: Doubles = np.array([self._ceiling(ranks) for ranks in self._ranks])
        return ceilings[self._group]

    def _ceiling(self, ranks: Ranks) -> float:
        total = 1 + ranks.above[0]
        refused = [n for n, above in enumerate(ranks.above) if (1 + above) / total <= self.rate]
        return ranks.scores[refused[0] - 1] - 1.0 if refused else math.inf

    def doubt(self, cheap: npt.NDArray[np.floating]) -> Doubles:
        """[N, Dc] cheap statistics to [N]: the combination of the active ones, 0 or more."""
        return self._combined(cheap, self._cheap)

    def escalates(self, doubt: Doubles) -> Booleans:
        """Which rows go on to the expensive tier."""
        if not self.has_expensive:
            return np.zeros(len(doubt), np.bool_)
        return doubt >= self._threshold

    def scores(
        self, doubt: Doubles, escalated: Booleans, statistics: npt.NDArray[np.floating]
    ) -> Doubles:
        """One number a row, higher is more suspicious.

        Args:
            doubt: [N].
            escalated: [N].
            statistics: [M, D] of the M escalated rows, all detectors, the cheap ones first.

        Returns:
            [N]: in [0, 1) for rows that stay in the cheap tier, in order of doubt; over 1 for the
            others.

        """
        scores = doubt / (1.0 + doubt)
        if escalated.any():
            scores[escalated] = 1.0 + self._combined(statistics, self._every)
        return scores

    def p_values(self, scores: Doubles, said: npt.NDArray[np.integer]) -> Doubles:
        """Conformal p-values, in (0, 1].

        Args:
            scores: [N].
            said: [N] classes that the classifier names for the rows.

        """
        p = np.empty(len(scores), np.float64)
        group = self._group_of(said)
        for number, ranks in enumerate(self._ranks):
            rows = group == number
            below = np.searchsorted(np.array(ranks.scores), scores[rows], side="left")
            above = np.array(ranks.above)
            p[rows] = (1 + above[below]) / (1 + above[0])
        return p

    def _group_of(self, said: npt.NDArray[np.integer]) -> Classes:
        # Classes beyond the last that calibration saw share what the last entry stands for.
        found: Classes = self._group[np.minimum(said, len(self._group) - 1)]
        return found

    def detector_p_values(self, statistics: npt.NDArray[np.floating]) -> Doubles:
        """Of each statistic alone, against part A: [N, <= D] to the same shape."""
        out = np.empty(statistics.shape, np.float64)
        size = len(self._reference)
        for column in range(statistics.shape[1]):
            out[:, column] = (1 + size - self._below(statistics, column)) / (size + 1)
        return out

    def active_columns(self, width: int) -> list[int]:
        """Columns of the active detectors among the first `width`."""
        return [column.place for column in self._every if column.place < width]

    def equal_p(self, totals: Doubles, count: int) -> Doubles:
        """The p-value that each of `count` detectors may have for them to combine to a total."""
        each = totals / max(count, 1) if self._combination == "fisher" else totals
        p: Doubles = np.exp(-each)
        return p

    def columns(self, way: Literal["cheap", "every"]) -> tuple[Column, ...]:
        """How statistics become scores, of the cheap detectors alone or of all."""
        return tuple(self._cheap if way == "cheap" else self._every)

    def _make_table(self) -> list[float]:
        """What a statistic adds to the combination, by how many of part A lie below it."""
        size = len(self._reference)
        p = (1 + size - np.arange(size + 1)) / (size + 1)
        table: list[float] = (1.0 / p if self._combination == "harmonic" else -np.log(p)).tolist()
        return table

    def _columns(self, places: Sequence[int], weights: Sequence[float] | None) -> list[Column]:
        if weights is not None and not any(weights[place] for place in places):
            # None of those that are left is better than another.
            weights = [1.0] * len(weights)
        found = []
        for place in places:
            values = self._reference[:, place]
            column = Column(place, values.tolist(), self._table)
            if weights is not None:
                cut = int(_BODY * (len(values) - 1))
                excess = float((values[cut:] - values[cut]).mean()) or float(values.std()) or 1.0
                column = replace(
                    column, weight=weights[place], cut=float(values[cut]),
                    base=self._table[cut + 1], slope=1.0 / excess,
                )  # fmt: skip
            found.append(column)
        return found

    def _combined(self, statistics: npt.NDArray[np.floating], columns: Sequence[Column]) -> Doubles:
        if not columns:
            return np.zeros(len(statistics))
        total = np.zeros(len(statistics))
        table = np.array(self._table)
        for column in columns:
            values = statistics[:, column.place].astype(np.float64)
            score = table[self._below(statistics, column.place)]
            beyond = values > column.cut
            if beyond.any():
                line = column.base + (values[beyond] - column.cut) * column.slope
                score[beyond] = np.minimum(line, CAP)
            total += column.weight * score
        if self._combination == "harmonic":
            return np.array([math.log(one / len(columns)) for one in total])
        return total

    def _below(self, statistics: npt.NDArray[np.floating], column: int) -> npt.NDArray[np.intp]:
        """How many of part A lie below each row's statistic."""
        return np.searchsorted(
            self._reference[:, column], statistics[:, column].astype(np.float64), side="left"
        )


def _unit_weights(calibration: Calibration) -> Doubles:
    """[nB]: one over the number of rows of each row's photograph."""
    if calibration.photographs is None:
        return np.ones(len(calibration.part_b))
    _, which, count = np.unique(calibration.photographs, return_inverse=True, return_counts=True)
    weights: Doubles = 1.0 / count[which]
    return weights


def _ranks(scores: Doubles, weights: Doubles) -> Ranks:
    order = np.argsort(scores, kind="stable")
    # Twelve twelfths are one: what floats leave over would cost the last photograph.
    above = np.round(np.concatenate([np.cumsum(weights[order][::-1])[::-1], [0.0]]), 9)
    return Ranks(scores[order].tolist(), above.tolist())
