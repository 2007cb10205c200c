"""How a guard is broken.

From Python: `attack("pgd", TorchClassifier(network), x, y, eps=8 / 255)`.
"""

from firewall.attack.python_api import TorchClassifier, attack

__all__ = ["TorchClassifier", "attack"]
