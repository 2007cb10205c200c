"""What a plugin is: the contract of stages, the evidence they read, and how they are found.

A plugin imports from here and from nowhere else in `firewall`.
"""

from firewall.stages.bpda import with_surrogate
from firewall.stages.contract import (
    API_VERSION,
    Denoiser,
    Detector,
    Ensemble,
    FitReport,
    Fittable,
    Needs,
    StageConfig,
    Tier,
)
from firewall.stages.evidence import RAW, Evidence

__all__ = [
    "API_VERSION",
    "RAW",
    "Denoiser",
    "Detector",
    "Ensemble",
    "Evidence",
    "FitReport",
    "Fittable",
    "Needs",
    "StageConfig",
    "Tier",
    "with_surrogate",
]
