"""How a worker that comes later is brought to what the others serve."""

from __future__ import annotations

from typing import Any

import pytest

from firewall.serve.fleet import _Served
from firewall.wire import admin_pb2 as wire

RELOAD = ("Reload", {"path": "b"})
AGAIN = ("Reload", {"path": "c"})
MONITOR = ("SetPolicy", {"toml": "mode = 'monitor'"})
ROLLBACK = ("Rollback", {})
SHADOW = ("StartShadow", {"path": "s", "percent": 5.0})
PROMOTE = ("PromoteShadow", {})
DROP = ("DropShadow", {})


class Worker:
    """What one worker would serve, by the rules of `Rollout`."""

    def __init__(self) -> None:
        self.live: tuple[str, str] = ("a", "")
        self.before: tuple[str, str] | None = None
        self.shadow = ""

    def make(self, method: str, given: dict[str, Any]) -> None:
        if method == "Rollback":
            assert self.before is not None
            self.live, self.before = self.before, self.live
        elif method == "StartShadow":
            self.shadow = given["path"]
        elif method == "DropShadow":
            self.shadow = ""
        else:
            path, policy = self.live
            self.before = self.live
            if method == "Reload":
                self.live = (given["path"], policy)
            elif method == "SetPolicy":
                self.live = (path, given["toml"])
            else:
                self.live, self.shadow = (self.shadow, policy), ""


def request(method: str, given: dict[str, Any]) -> Any:
    return getattr(wire, f"{method}Request")(model="m", **given)


@pytest.mark.parametrize(
    "changes",
    [
        [],
        [RELOAD],
        [MONITOR],
        [RELOAD, ROLLBACK],
        [RELOAD, ROLLBACK, ROLLBACK],
        [MONITOR, ROLLBACK],
        [RELOAD, AGAIN],
        [RELOAD, AGAIN, ROLLBACK],
        [RELOAD, MONITOR],
        [MONITOR, RELOAD],
        [MONITOR, RELOAD, ROLLBACK],
        [RELOAD, MONITOR, ROLLBACK, AGAIN],
        [SHADOW],
        [SHADOW, DROP],
        [SHADOW, PROMOTE],
        [SHADOW, PROMOTE, ROLLBACK],
        [MONITOR, SHADOW, PROMOTE, RELOAD, SHADOW],
        [RELOAD, AGAIN] * 25,
    ],
    ids=lambda changes: " ".join(method for method, _ in changes[:4]) or "nothing",
)
def test_a_late_worker_serves_the_same_and_goes_back_to_the_same(
    changes: list[tuple[str, dict[str, Any]]],
) -> None:
    served, early, late = _Served(), Worker(), Worker()
    for method, given in changes:
        served.changed(method, request(method, given))
        early.make(method, given)
    replayed = served.changes("m")
    assert len(replayed) <= 4
    for method, message in replayed:
        late.make(method, {field.name: value for field, value in message.ListFields()})
    assert (late.live, late.shadow) == (early.live, early.shadow)
    assert late.before == early.before
