"""Registry of installed monitors, read from entry points; built-ins are registered the same way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from pydantic import ValidationError

from firewall.errors import ConfigError, PluginBroken, PluginNotFound
from firewall.monitors.contract import API_VERSION, Monitor, MonitorConfig, MonitorPlugin
from firewall.monitors.store import Store
from firewall.validation import describe

GROUP = "firewall.monitors"


@dataclass(frozen=True)
class MonitorInfo:
    """A line of `firewall plugins`. `error` is None for a monitor that can be used."""

    name: str
    distribution: str
    version: str
    error: str | None
    kind: str = "monitor"


class MonitorRegistry:
    """The installed monitors. Make one with `discover` and pass it on; there is no global one."""

    def __init__(self, entries: Mapping[str, EntryPoint]) -> None:
        self._entries = dict(entries)

    @classmethod
    def discover(cls) -> MonitorRegistry:
        """Read the installed entry points without importing any plugin."""
        entries: dict[str, EntryPoint] = {}
        for entry in entry_points(group=GROUP):
            known = entries.setdefault(entry.name, entry)
            if known.value != entry.value:
                raise PluginBroken(
                    f"monitor {entry.name!r} is registered twice, by {_origin(known)} and by "
                    f"{_origin(entry)}; uninstall one of them"
                )
        return cls(entries)

    def names(self) -> tuple[str, ...]:
        """Names of the installed monitors, sorted."""
        return tuple(sorted(self._entries))

    def load(self, name: str) -> MonitorPlugin:
        """Import the class of a monitor and check it against the contract.

        Raises:
            PluginNotFound: nothing of that name is installed.
            PluginBroken: it cannot be imported, or breaks the contract.

        """
        entry = self._entries.get(name)
        if entry is None:
            known = ", ".join(self.names()) or "none"
            raise PluginNotFound(f"monitor {name!r} is not installed; installed: {known}")
        try:
            loaded: Any = entry.load()
        except Exception as error:  # importing third-party code may raise anything
            raise PluginBroken(
                f"monitor {name!r} of {_origin(entry)} cannot be imported: "
                f"{type(error).__name__}: {error}"
            ) from error
        problem = _breach(loaded)
        if problem:
            raise PluginBroken(f"monitor {name!r} of {_origin(entry)} {problem}")
        plugin: MonitorPlugin = loaded
        return plugin

    def build(self, name: str, config: Mapping[str, Any], store: Store, secret: bytes) -> Monitor:
        """Create a monitor with a validated config.

        Raises:
            PluginError: as `load`.
            ConfigError: a key of `config` is unknown or has a wrong value; the text names it.

        """
        plugin = self.load(name)
        try:
            parsed = plugin.Config.model_validate(dict(config))
        except ValidationError as error:
            raise ConfigError(f"monitor {name!r}: {describe(error)}") from error
        return plugin(parsed, store, secret)

    def report(self) -> list[MonitorInfo]:
        """Try to import every installed monitor; a broken one is reported, not raised."""
        lines: list[MonitorInfo] = []
        for name, entry in sorted(self._entries.items()):
            try:
                self.load(name)
                problem = None
            except PluginBroken as error:
                problem = str(error)
            dist = entry.dist
            lines.append(
                MonitorInfo(
                    name=name,
                    distribution=dist.name if dist else "unknown",
                    version=dist.version if dist else "unknown",
                    error=problem,
                )
            )
        return lines


def _origin(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else entry.value


def _breach(loaded: object) -> str | None:
    """Say how a plugin breaks the contract, or None."""
    if not isinstance(loaded, type) or not callable(getattr(loaded, "observe", None)):
        return "is not a class with observe(seen)"
    version = getattr(loaded, "api_version", None)
    if version != API_VERSION:
        return f"has api_version {version!r}; this firewall supports {API_VERSION}"
    config = getattr(loaded, "Config", None)
    if not (isinstance(config, type) and issubclass(config, MonitorConfig)):
        return "has no Config that derives from firewall.monitors.MonitorConfig"
    if config.model_config.get("extra") != "forbid" or not config.model_config.get("frozen"):
        return "has a Config that is not frozen or accepts unknown keys"
    return None
