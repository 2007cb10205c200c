"""Commands. A composition root: it puts parts together and prints; it decides nothing."""

from firewall.cli.app import main

__all__ = ["main"]
