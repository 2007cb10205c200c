"""A robustness firewall in front of a served image classifier."""

__version__ = "0.1.0"
