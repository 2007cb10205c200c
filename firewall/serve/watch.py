"""Whether a classifier elsewhere can be asked: looked at every second, so that probes need not."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from firewall.errors import FirewallError
from firewall.screening.remote import RemoteClassifier

log = logging.getLogger(__name__)

_PERIOD = 1.0


class Watch:
    """Follows a remote classifier. Up is one that is ready and the one that was calibrated for."""

    def __init__(
        self,
        classifier: RemoteClassifier,
        check: Callable[[], None],
        *,
        period: float = _PERIOD,
    ) -> None:
        """Nothing runs before `start`.

        Args:
            classifier: which.
            check: raises what is wrong with it; asked whenever it comes up.
            period: seconds between looks.

        """
        self._classifier, self._check, self._period = classifier, check, period
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="upstream", daemon=True)
        self._said = ""
        #: As it was last seen; before that, down.
        self.up = False

    def start(self) -> None:
        """Look now, and every second from now on; again, look now."""
        self._look()
        if not self._thread.is_alive():
            self._thread.start()

    def stop(self) -> None:
        """Look no more, and close the connection."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)
        self._classifier.close()

    def _run(self) -> None:
        while not self._stop.wait(self._period):
            try:
                self._look()
            except Exception:  # whatever it is, the next look may go well
                log.exception("the upstream could not be looked at")
                self.up = False

    def _look(self) -> None:
        if not self._classifier.ready():
            self._say("the upstream is not ready")
            self.up = False
            return
        if self.up:
            return
        try:
            self._check()
        except FirewallError as error:
            self._say(str(error))
            return
        self._say("")
        self.up = True

    def _say(self, problem: str) -> None:
        """Once, and not every second."""
        if problem != self._said:
            log.warning("%s", problem or "the upstream is ready")
            self._said = problem
