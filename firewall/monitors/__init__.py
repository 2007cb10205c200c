"""Monitors: what remembers past requests. Plain Python, without torch.

A plugin imports what it needs from here.
"""

from __future__ import annotations

from firewall.monitors.contract import API_VERSION, Floats, Monitor, MonitorConfig, Seen
from firewall.monitors.store import Store

__all__ = ["API_VERSION", "Floats", "Monitor", "MonitorConfig", "Seen", "Store"]
