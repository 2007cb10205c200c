"""The calibration that ships for the default classifier, and its check against the graphs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt

from firewall.errors import CalibrationError
from firewall.screening.calibration import Calibration, Weights
from firewall.screening.compiled import CompiledGuard
from firewall.screening.preprocess import to_wire
from firewall.train import default_recipe as recipe
from firewall.train.photographs import crops, wheel_photographs

Doubles = npt.NDArray[np.float64]

#: Of part A's standard deviation, how far a statistic of the same picture may be from what was
#: shipped. Other versions of torch and onnxruntime add in another order.
_TOLERANCE = 0.1
_REMEDY = (
    "make the weights and the calibration anew by python -m firewall.core.build, or install the "
    "versions of constraints.txt"
)


@dataclass(frozen=True)
class Shipped:
    """Statistics of photographs, and by which graphs they were computed.

    Attributes:
        calibration: of the default guard.
        graphs: SHA-256 of each graph.
        check: [N, D] statistics of the pictures of `check_statistics`.
        elsewhere: weights of `core-pixels` and `feature-squeezing` alone, for classifiers that are
            served elsewhere.
        made: how, and figures, for the card.

    """

    calibration: Calibration
    graphs: Mapping[str, str]
    check: Doubles
    elsewhere: Weights
    made: Mapping[str, Any]

    def to_json(self) -> str:
        """Write it as it ships."""
        body = {
            "made": dict(self.made),
            "graphs": dict(self.graphs),
            "check": self.check.tolist(),
            "elsewhere": asdict(self.elsewhere),
            "calibration": json.loads(self.calibration.to_json()),
        }
        return json.dumps(body, indent=None, allow_nan=False) + "\n"

    @classmethod
    def read(cls, witness: bool) -> Shipped:
        """Read what ships, of the default guard with the second network or without.

        Raises:
            CalibrationError: it is missing or damaged.

        """
        place = files("firewall.core") / "weights" / recipe.calibration_file(witness)
        try:
            body = json.loads(place.read_text(encoding="utf-8"))
            return cls(
                Calibration.from_json(json.dumps(body["calibration"], allow_nan=False).encode()),
                body["graphs"],
                np.asarray(body["check"], np.float64),
                Weights(**{name: tuple(found) for name, found in body["elsewhere"].items()}),
                body["made"],
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CalibrationError(f"{place.name} is missing or damaged; {_REMEDY}") from error

    def of(self, graphs: Mapping[str, bytes], compiled: CompiledGuard) -> Calibration:
        """Return the calibration if it is one of these graphs.

        Graphs of the same digests computed it. Others must give the pictures of the check the same
        statistics.

        Raises:
            CalibrationError: they do not.

        """
        if digests(graphs) == dict(self.graphs):
            return self.calibration
        found = check_statistics(compiled)
        spread = self.calibration.part_a.std(axis=0)
        if (
            found.shape != self.check.shape
            or not (np.abs(found - self.check) <= _TOLERANCE * spread).all()
        ):
            raise CalibrationError(
                "the graphs built here give other statistics than those that the shipped "
                f"calibration is made of; {_REMEDY}"
            )
        return self.calibration


def digests(graphs: Mapping[str, bytes]) -> dict[str, str]:
    """SHA-256 of each graph, by name."""
    return {name: hashlib.sha256(graph).hexdigest() for name, graph in sorted(graphs.items())}


def check_statistics(compiled: CompiledGuard) -> Doubles:
    """[N, D]: both tiers' statistics of a crop of each of twelve photographs out of wheels."""
    pixels, _ = crops(wheel_photographs()[-12:], 1, recipe.SIDE, recipe.SEED)
    return compiled.both(to_wire(pixels, recipe.INPUT))[1].astype(np.float64)
