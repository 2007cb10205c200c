"""Changes of what is served, without a failed request: reload, rollback, shadow, policy.

Every change goes the same way: check the new bundle or policy, load it beside the live one, run its
self-test, and only then swap. A change that fails before that leaves the live model as it is and
says why. One change is made at a time, and the audit log says who made it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from firewall.bundle.manifest import Manifest
from firewall.bundle.store import Bundle
from firewall.bundle.versions import check_version
from firewall.errors import ConfigError, FirewallError, NotReady, Overloaded
from firewall.screening.policy import Policy
from firewall.serve.audit import Audit
from firewall.serve.metrics import Metrics
from firewall.serve.model import ServedModel
from firewall.serve.repository import ModelEntry, ModelRepository
from firewall.serve.shadow import Shadow

#: Seconds that a change waits for the one before it.
LOCK_TIMEOUT = 30.0


class Rollout:
    """Makes changes, one at a time."""

    def __init__(
        self,
        repository: ModelRepository,
        paths: dict[str, Path],
        *,
        open_bundle: Callable[[Path], Bundle],
        make: Callable[[Bundle, Policy], ServedModel],
        policy: Callable[[], Policy],
        audit: Audit,
        metrics: Metrics,
        allow_downgrade: bool = False,
    ) -> None:
        """Change nothing yet.

        Args:
            repository: what is served.
            paths: where each was opened.
            open_bundle: checks a bundle whole.
            make: loads it beside what is live.
            policy: the operator's settings, read anew.
            audit: told of every change and of every refusal.
            metrics: told as well.
            allow_downgrade: whether a reload may serve an older version without being asked to.

        """
        self._allow_downgrade = allow_downgrade
        self._repository = repository
        self._paths = dict(paths)
        self._open, self._make, self._policy = open_bundle, make, policy
        self._audit, self._metrics = audit, metrics
        self._lock = threading.Lock()

    def entry(self, model: str) -> ModelEntry:
        """Find what is served under a name; an empty name means the only model.

        Raises:
            NotFound: another name.

        """
        return self._repository.entry(model, default=True)

    def path(self, model: str) -> Path:
        """Path that a model is reloaded from."""
        return self._paths[model]

    def reload(
        self, model: str, who: str, path: Path | None = None, *, allow_downgrade: bool = False
    ) -> bool:
        """Serve the bundle that lies at a path now.

        Args:
            model: whose; empty is the only one.
            who: asks.
            path: of the bundle, and of later reloads; where the live one was opened when None.
            allow_downgrade: whether the bundle may have an older version than the live one.

        Returns:
            False when that bundle is served already.

        Raises:
            FirewallError: it cannot be served; the one that is live goes on.

        """
        entry = self.entry(model)
        name = entry.live.name

        def change() -> bool:
            place = path or self._paths[name]
            bundle = self._open(place)
            if bundle.digest == entry.live.digest:
                self._paths[name] = place
                return False
            _check_same_interface(entry.live, bundle)
            self._check_version(entry, bundle.manifest, allow_downgrade)
            entry.swap(self._ready(bundle, entry.live.guard.policy))
            self._paths[name] = place
            return True

        return self._change("reload", entry, who, change)

    def rollback(self, model: str, who: str) -> None:
        """Undo the last change of bundle or policy; a second rollback redoes it.

        Raises:
            ConfigError: there was none.
            FirewallError: the one before fails its self-test now.

        """
        entry = self.entry(model)

        def change() -> bool:
            before = entry.before
            if before is None:
                raise ConfigError(f"rollback: nothing was served as {entry.live.name!r} before")
            _try(before)
            entry.swap(before)
            return True

        self._change("rollback", entry, who, change)

    def set_policy(self, model: str, who: str, policy: Policy | None = None) -> bool:
        """Decide by another policy from now on.

        Args:
            model: whose; empty is the only one.
            who: asks.
            policy: as read from the operator's settings now, without.

        Returns:
            False when it is the one that is live.

        Raises:
            FirewallError: the bundle cannot keep it; the one that is live goes on.

        """
        entry = self.entry(model)

        def change() -> bool:
            wanted = policy or self._policy()
            if wanted.digest == entry.live.guard.policy.digest:
                return False
            entry.swap(entry.live.with_policy(wanted))
            return True

        return self._change("policy", entry, who, change)

    def start_shadow(self, model: str, who: str, path: Path, percent: float) -> None:
        """Let a candidate see a share of the traffic, and answer nobody.

        Args:
            model: beside which; empty is the only one.
            who: asks.
            path: of the candidate's bundle.
            percent: of requests, in (0, 100].

        Raises:
            FirewallError: it cannot be loaded.

        """
        entry = self.entry(model)

        def change() -> bool:
            if not 0 < percent <= 100:
                raise ConfigError(f"percent: {percent:g}; expected more than 0, and at most 100")
            bundle = self._open(path)
            _check_same_interface(entry.live, bundle)
            candidate = self._ready(bundle, entry.live.guard.policy)
            entry.compare(Shadow(candidate, percent, self._metrics))
            return True

        self._change("shadow", entry, who, change)

    def promote(self, model: str, who: str) -> None:
        """Serve the candidate.

        Raises:
            ConfigError: there is none.

        """
        entry = self.entry(model)

        def change() -> bool:
            shadow = _shadow(entry)
            candidate = shadow.candidate
            self._check_version(entry, candidate.manifest)
            # The policy may have changed since.
            if candidate.guard.policy.digest != entry.live.guard.policy.digest:
                candidate = candidate.with_policy(entry.live.guard.operator_policy)
            entry.swap(candidate)
            entry.compare(None)
            return True

        self._change("promote", entry, who, change)

    def drop(self, model: str, who: str) -> None:
        """Stop comparing the candidate.

        Raises:
            ConfigError: there is no candidate.

        """
        entry = self.entry(model)

        def change() -> bool:
            _shadow(entry)
            entry.compare(None)
            return True

        self._change("drop", entry, who, change)

    def refresh(self, who: str) -> None:
        """Read policy and bundles again, as after SIGHUP; refusals are in the audit log alone."""
        for entry in self._repository:
            for change in (self.set_policy, self.reload):
                try:
                    change(entry.live.name, who)
                except FirewallError:
                    continue  # the audit log says why

    def _ready(self, bundle: Bundle, policy: Policy) -> ServedModel:
        """Load a model and run its self-test."""
        model = self._make(bundle, policy)
        try:
            _try(model)
        except BaseException:
            model.close()
            raise
        return model

    def _check_version(
        self, entry: ModelEntry, new: Manifest, allow_downgrade: bool = False
    ) -> None:
        check_version(
            entry.live.manifest.version,
            new.version,
            entry.live.guard.policy.min_version,
            allow_downgrade or self._allow_downgrade,
        )

    def _change(self, kind: str, entry: ModelEntry, who: str, change: Callable[[], bool]) -> bool:
        """Make a change while no other is made, and record its result."""
        if not self._lock.acquire(timeout=LOCK_TIMEOUT):
            raise Overloaded("another change is in progress", retry_after=LOCK_TIMEOUT)
        try:
            before = entry.live
            name = before.name
            try:
                done = change()
            except FirewallError as error:
                self._metrics.changed(name, kind, "refused")
                self._audit.event("refused", change=kind, model=name, who=who, why=str(error))
                raise
            result = "done" if done else "unchanged"
            self._metrics.changed(name, kind, result)
            live, shadow = entry.live, entry.shadow
            self._audit.event(
                "changed" if done else "unchanged",
                change=kind,
                model=name,
                who=who,
                version=live.manifest.version,
                bundle=live.digest,
                policy=live.guard.policy.digest,
                before={"bundle": before.digest, "policy": before.guard.policy.digest},
                shadow=None if shadow is None else shadow.candidate.digest,
            )
            return done
        finally:
            self._lock.release()


def _try(model: ServedModel) -> None:
    model.self_test()
    if not model.ready:
        raise NotReady(f"model {model.name!r}: the classifier behind it cannot be asked")


def _shadow(entry: ModelEntry) -> Shadow:
    if entry.shadow is None:
        raise ConfigError(f"shadow: no candidate is compared with {entry.live.name!r}")
    return entry.shadow


def _check_same_interface(live_model: ServedModel, bundle: Bundle) -> None:
    """Refuse a bundle that clients of the live one could not ask.

    Raises:
        ConfigError: naming what differs.

    """
    live, other = live_model.manifest, bundle.manifest
    for field, old, new in (
        ("name", live.name, other.name),
        ("input", live.input, other.input),
        ("output", live.output, other.output),
        ("activation", live.scores.activation, other.scores.activation),
        ("datatype", live.scores.datatype, other.scores.datatype),
        ("shape", live.score_shape, other.score_shape),
        ("other_outputs", live.other_outputs, other.other_outputs),
        ("classes", live.classifier.classes, other.classifier.classes),
    ):
        if old != new:
            raise ConfigError(
                f"bundle, {field}: {new}; clients of {live.name!r} count on {old}. Serve it "
                "under a name of its own"
            )
