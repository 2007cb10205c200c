"""Registry of installed plugins, read from entry points; built-ins are registered the same way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from pydantic import ValidationError

from firewall.errors import ConfigError, PluginBroken, PluginNotFound
from firewall.stages.contract import API_VERSION, Denoiser, Detector, Ensemble, StageConfig
from firewall.validation import describe

Kind = Literal["denoiser", "detector", "ensemble"]

#: The base class of each kind.
BASES: Mapping[Kind, type[Denoiser] | type[Detector] | type[Ensemble]] = {
    "denoiser": Denoiser,
    "detector": Detector,
    "ensemble": Ensemble,
}


@dataclass(frozen=True)
class PluginInfo:
    """A line of `firewall plugins`. `error` is None for a plugin that can be used."""

    kind: Kind
    name: str
    distribution: str
    version: str
    error: str | None


class Registry:
    """The installed plugins. Make one with `discover` and pass it on; there is no global one."""

    def __init__(self, entries: Mapping[tuple[Kind, str], EntryPoint]) -> None:
        self._entries = dict(entries)

    @classmethod
    def discover(cls) -> Registry:
        """Read the installed entry points without importing any plugin."""
        entries: dict[tuple[Kind, str], EntryPoint] = {}
        for kind in BASES:
            for entry in entry_points(group=f"firewall.{kind}s"):
                known = entries.setdefault((kind, entry.name), entry)
                if known.value != entry.value:
                    raise PluginBroken(
                        f"{kind} {entry.name!r} is registered twice, by {_origin(known)} and by "
                        f"{_origin(entry)}; uninstall one of them"
                    )
        return cls(entries)

    def names(self, kind: Kind) -> tuple[str, ...]:
        """Names of the installed plugins of a kind, sorted."""
        return tuple(sorted(name for found, name in self._entries if found == kind))

    def load(self, kind: Kind, name: str) -> type[Any]:
        """Import the class of a plugin and check it against the contract.

        Raises:
            PluginNotFound: nothing of that kind and name is installed.
            PluginBroken: it cannot be imported, or breaks the contract.

        """
        entry = self._entries.get((kind, name))
        if entry is None:
            known = ", ".join(self.names(kind)) or "none"
            raise PluginNotFound(f"{kind} {name!r} is not installed; installed {kind}s: {known}")
        try:
            loaded = entry.load()
        except Exception as error:  # importing third-party code may raise anything
            raise PluginBroken(
                f"{kind} {name!r} of {_origin(entry)} cannot be imported: "
                f"{type(error).__name__}: {error}"
            ) from error
        problem = _breach(kind, loaded)
        if problem:
            raise PluginBroken(f"{kind} {name!r} of {_origin(entry)} {problem}")
        checked: type[Any] = loaded
        return checked

    def build(self, kind: Kind, name: str, config: Mapping[str, Any]) -> Any:
        """Create a plugin with a validated config, in eval mode.

        Raises:
            PluginError: as `load`.
            ConfigError: a key of `config` is unknown or has a wrong value; the text names it.

        """
        plugin = self.load(kind, name)
        try:
            parsed = plugin.Config.model_validate(dict(config))
        except ValidationError as error:
            raise ConfigError(f"{kind} {name!r}: {describe(error)}") from error
        return plugin(parsed).eval()

    def report(self) -> list[PluginInfo]:
        """Try to import every installed plugin; a broken one is reported, not raised."""
        lines: list[PluginInfo] = []
        for (kind, name), entry in sorted(self._entries.items()):
            try:
                self.load(kind, name)
                problem = None
            except PluginBroken as error:
                problem = str(error)
            dist = entry.dist
            lines.append(
                PluginInfo(
                    kind=kind,
                    name=name,
                    distribution=dist.name if dist else "unknown",
                    version=dist.version if dist else "unknown",
                    error=problem,
                )
            )
        return lines


def _origin(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else entry.value


def _breach(kind: Kind, loaded: object) -> str | None:
    """Say how a plugin breaks the contract, or None."""
    base = BASES[kind]
    if not (isinstance(loaded, type) and issubclass(loaded, base)):
        return f"is not a subclass of firewall.stages.{base.__name__}"
    version = getattr(loaded, "api_version", None)
    if version != API_VERSION:
        return f"has api_version {version!r}; this firewall supports {API_VERSION}"
    config = getattr(loaded, "Config", None)
    if not (isinstance(config, type) and issubclass(config, StageConfig)):
        return "has no Config that derives from firewall.stages.StageConfig"
    if config.model_config.get("extra") != "forbid" or not config.model_config.get("frozen"):
        return "has a Config that is not frozen or accepts unknown keys"
    if kind == "detector" and getattr(loaded, "tier", None) not in ("cheap", "expensive"):
        return "declares no tier; it must be 'cheap' or 'expensive'"
    if getattr(loaded, "__abstractmethods__", frozenset()):
        missing = ", ".join(sorted(loaded.__abstractmethods__))
        return f"does not implement {missing}"
    return None
