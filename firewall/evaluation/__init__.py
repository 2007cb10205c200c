"""How trustworthy a guard is: attacks, flags, figures and a report. Everything here is offline."""

from firewall.evaluation.python_api import evaluate

__all__ = ["evaluate"]
