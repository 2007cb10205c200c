"""Changes of what is served, without a failed request: reload, rollback, shadow, policy.

Every change goes the same way: check everything about what comes, load it beside what is live, run
its self-test, and only then swap. What does not get so far leaves the live one as it is and says
why. One change is made at a time, and each is in the audit log with who made it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from firewall.bundle.store import Bundle
from firewall.errors import ConfigError, FirewallError, NotReady
from firewall.screening.policy import Policy
from firewall.serve.audit import Audit
from firewall.serve.metrics import Metrics
from firewall.serve.models import Models
from firewall.serve.runtime import ServedModel
from firewall.serve.shadow import Shadow
from firewall.serve.slot import Slot

Result = TypeVar("Result")


class Rollout:
    """Who asks for a change asks here."""

    def __init__(
        self,
        models: Models,
        paths: dict[str, Path],
        *,
        open_bundle: Callable[[Path], Bundle],
        make: Callable[[Bundle, Policy], ServedModel],
        policy: Callable[[], Policy],
        audit: Audit,
        metrics: Metrics,
    ) -> None:
        """Nothing is changed before it is asked for.

        Args:
            models: what is served.
            paths: where each was opened.
            open_bundle: checks a bundle whole.
            make: loads it beside what is live.
            policy: the operator's settings, read anew.
            audit: told of every change and of every refusal.
            metrics: told as well.

        """
        self._models = models
        self._paths = dict(paths)
        self._open, self._make, self._policy = open_bundle, make, policy
        self._audit, self._metrics = audit, metrics
        self._lock = threading.Lock()

    def slot(self, model: str) -> Slot:
        """What is served under a name; an empty one is the only model.

        Raises:
            NotFound: another name.

        """
        return self._models.slot(model, default=True)

    def path(self, model: str) -> Path:
        """Where a model is reloaded from."""
        return self._paths[model]

    def reload(self, model: str, who: str, path: Path | None = None) -> bool:
        """Serve the bundle that lies there now.

        Args:
            model: whose; empty is the only one.
            who: asks.
            path: of the bundle, and of later reloads; where it was opened without.

        Returns:
            False when that bundle is served already.

        Raises:
            FirewallError: it cannot be served; the one that is live goes on.

        """
        slot = self.slot(model)
        name = slot.live.name

        def change() -> bool:
            place = path or self._paths[name]
            bundle = self._open(place)
            if bundle.digest == slot.live.digest:
                self._paths[name] = place
                return False
            slot.swap(self._ready(slot, bundle, slot.live.guard.policy))
            self._paths[name] = place
            return True

        return self._change("reload", slot, who, change)

    def rollback(self, model: str, who: str) -> None:
        """Undo the last change of bundle or policy. Once more does it again.

        Raises:
            ConfigError: there was none.
            FirewallError: the one before fails its self-test now.

        """
        slot = self.slot(model)

        def change() -> bool:
            before = slot.before
            if before is None:
                raise ConfigError(f"rollback: nothing was served as {slot.live.name!r} before")
            _try(before)
            slot.swap(before)
            return True

        self._change("rollback", slot, who, change)

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
        slot = self.slot(model)

        def change() -> bool:
            wanted = policy or self._policy()
            if wanted.digest == slot.live.guard.policy.digest:
                return False
            slot.swap(slot.live.with_policy(wanted))
            return True

        return self._change("policy", slot, who, change)

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
        slot = self.slot(model)

        def change() -> bool:
            if not 0 < percent <= 100:
                raise ConfigError(f"percent: {percent:g}; expected more than 0, and at most 100")
            candidate = self._ready(slot, self._open(path), slot.live.guard.policy)
            slot.compare(Shadow(candidate, percent, self._metrics))
            return True

        self._change("shadow", slot, who, change)

    def promote(self, model: str, who: str) -> None:
        """Serve the candidate.

        Raises:
            ConfigError: there is none.

        """
        slot = self.slot(model)

        def change() -> bool:
            shadow = _shadow(slot)
            candidate = shadow.candidate
            # The policy may have changed since.
            if candidate.guard.policy.digest != slot.live.guard.policy.digest:
                candidate = candidate.with_policy(slot.live.guard.policy)
            slot.swap(candidate)
            slot.compare(None)
            return True

        self._change("promote", slot, who, change)

    def drop(self, model: str, who: str) -> None:
        """Compare no more.

        Raises:
            ConfigError: there is no candidate.

        """
        slot = self.slot(model)

        def change() -> bool:
            _shadow(slot)
            slot.compare(None)
            return True

        self._change("drop", slot, who, change)

    def refresh(self, who: str) -> None:
        """Read policy and bundles again, as after SIGHUP; refusals are in the audit log alone."""
        for slot in self._models:
            for change in (self.set_policy, self.reload):
                try:
                    change(slot.live.name, who)
                except FirewallError:
                    continue  # said in the audit log

    def _ready(self, slot: Slot, bundle: Bundle, policy: Policy) -> ServedModel:
        """A model that could take the live one's place."""
        live, other = slot.live.manifest, bundle.manifest
        for field, old, new in (
            ("name", live.name, other.name),
            ("input", live.input, other.input),
            ("output", live.output, other.output),
            ("classes", live.classifier.classes, other.classifier.classes),
        ):
            if old != new:
                raise ConfigError(
                    f"bundle, {field}: {new}; clients of {live.name!r} count on {old}. Serve it "
                    "under a name of its own"
                )
        model = self._make(bundle, policy)
        try:
            _try(model)
        except BaseException:
            model.close()
            raise
        return model

    def _change(self, kind: str, slot: Slot, who: str, change: Callable[[], bool]) -> bool:
        """Make a change, alone, and say what became of it."""
        with self._lock:
            before = slot.live
            name = before.name
            try:
                done = change()
            except FirewallError as error:
                self._metrics.changed(name, kind, "refused")
                self._audit.event("refused", change=kind, model=name, who=who, why=str(error))
                raise
            result = "done" if done else "unchanged"
            self._metrics.changed(name, kind, result)
            live, shadow = slot.live, slot.shadow
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


def _try(model: ServedModel) -> None:
    model.self_test()
    if not model.ready:
        raise NotReady(f"model {model.name!r}: the classifier behind it cannot be asked")


def _shadow(slot: Slot) -> Shadow:
    if slot.shadow is None:
        raise ConfigError(f"shadow: no candidate is compared with {slot.live.name!r}")
    return slot.shadow
