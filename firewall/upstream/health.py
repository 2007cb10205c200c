"""Whether a served classifier can be asked, followed in the background so that probes need not."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from firewall.errors import Cancelled, DeadlineExceeded, FirewallError, NotReady, Overloaded
from firewall.screening.classifier import SeparateClassifier

log = logging.getLogger(__name__)

#: Failures of a self-test that do not say which model is served: a busy server stays in use.
_TRANSIENT = (NotReady, Overloaded, DeadlineExceeded, Cancelled)


class UpstreamHealth:
    """Follows a classifier, which is up while it is ready and is the one that was calibrated for.

    Readiness is asked every second. The self-test runs when the classifier comes up and again every
    minute, since a model that is reloaded in place never goes down.
    """

    def __init__(
        self,
        classifier: SeparateClassifier,
        check: Callable[[], None],
        *,
        period: float = 1.0,
        check_period: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing runs before `start`.

        Args:
            classifier: whose health it is; `stop` closes it.
            check: the self-test; raises a FirewallError that says what is wrong.
            period: seconds between two looks.
            check_period: seconds between two self-tests of a classifier that is up.
            clock: gives seconds.

        """
        self._classifier, self._check = classifier, check
        self._period, self._check_period, self._clock = period, check_period, clock
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="upstream", daemon=True)
        self._check_due = 0.0
        self._reported = ""
        #: As it was last seen; False before the first look.
        self.up = False

    def start(self) -> None:
        """Look now, and from now on every period; when started already, look now."""
        self.look()
        if not self._thread.is_alive():
            self._thread.start()

    def stop(self) -> None:
        """Look no more, and close the connection."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)
        self._classifier.close()

    def look(self) -> None:
        """Ask once. A problem is logged when it begins or changes, and never raised."""
        try:
            self.up = self._is_up()
        except FirewallError as error:
            self.up = False
            self._report(f"upstream not ready: {str(error).removeprefix('upstream: ')}")
        except Exception as error:  # whatever it is, the next look may go well
            self.up = False
            self._report(f"upstream not ready: {type(error).__name__}", error)

    def _run(self) -> None:
        while not self._stop.wait(self._period):
            self.look()

    def _is_up(self) -> bool:
        if not self._classifier.ready():
            raise NotReady("it does not answer, or says so")
        now = self._clock()
        if self.up and now < self._check_due:
            return True
        try:
            self._check()
        except _TRANSIENT:
            if not self.up:
                raise
        else:
            self._report("")
        self._check_due = now + self._check_period
        return True

    def _report(self, problem: str, error: Exception | None = None) -> None:
        """Log what has changed, and not the same every second."""
        if problem != self._reported:
            log.warning("%s", problem or "upstream ready", exc_info=error)
            self._reported = problem
