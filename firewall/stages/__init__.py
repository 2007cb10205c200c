"""What a plugin is: the contract of stages, the evidence they read, and how they are found.

A plugin imports from here and from nowhere else in `firewall`.
"""

from firewall.errors import PluginError, StageFault
from firewall.stages.bpda import with_surrogate
from firewall.stages.contract import (
    API_VERSION,
    Adopter,
    Denoiser,
    Detector,
    Ensemble,
    Examples,
    FitReport,
    Fittable,
    Forge,
    Learner,
    Lesson,
    Needs,
    RowLoss,
    StageConfig,
    Tier,
)
from firewall.stages.evidence import RAW, Evidence
from firewall.stages.forging import forger

__all__ = [
    "API_VERSION",
    "RAW",
    "Adopter",
    "Denoiser",
    "Detector",
    "Ensemble",
    "Evidence",
    "Examples",
    "FitReport",
    "Fittable",
    "Forge",
    "Learner",
    "Lesson",
    "Needs",
    "PluginError",
    "RowLoss",
    "StageConfig",
    "StageFault",
    "Tier",
    "forger",
    "with_surrogate",
]
