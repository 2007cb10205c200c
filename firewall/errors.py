"""Every error this package raises on purpose. Knows no gRPC; `serve.status` maps it to status.

::

    FirewallError
    ├── InvalidInput          a request or a file of the user's cannot be understood
    │   └── UnsupportedMedia  the body has a media type or a coding that is not served
    ├── NotFound              the named model or version is not served
    ├── Overloaded            the queue is full; carries when to come back
    ├── TooLarge              a message is over the size limit
    ├── DeadlineExceeded      the caller's deadline passed first
    ├── Cancelled             the caller went away
    ├── NotReady              the model has not passed its self-test, or the server drains
    ├── Unauthenticated       the client does not say who it is, or nobody knows it
    ├── Unsupported           the bundle cannot do what was asked
    ├── Refused               the firewall refused the whole request
    ├── RemoteError           client side: any other answer that is not an answer
    ├── UpstreamError         the classifier behind the firewall failed
    ├── StateUnavailable      what monitors remember cannot be asked for
    ├── ConfigError           a policy, recipe or guard specification is wrong
    ├── PluginError
    │   ├── PluginNotFound    no plugin of that kind and name is installed
    │   ├── PluginBroken      it is installed and cannot be imported or breaks the contract
    │   └── EvidenceMissing   a detector needs what this classifier or guard cannot give
    ├── StageFault            a stage returned a wrong shape or dtype; the text names it
    ├── CalibrationError
    │   └── SampleTooSmall    the sample cannot promise the rate asked for; says what would do
    ├── ParityError           the compiled graph and the torch module disagree
    ├── TrainingError         a step of a recipe run failed; what was finished is kept
    ├── GateFailed            a bundle does not reach what its recipe asks for
    └── BundleError
        ├── BundleMissing     there is no bundle at that place
        ├── BundleMalformed   the manifest or a file in it is not what the schema says
        ├── BundleTooLarge    a file, or a tensor of a graph, is over its cap
        ├── BundleAltered     a file is missing, extra, or not the one that was signed
        ├── BundleUntrusted   the signer is not trusted, or the signature is not theirs
        ├── BundleVersion     the schema version is unknown to this program
        └── BundleVersionTooOld
                              the bundle is older than the floor or the live bundle
"""

from __future__ import annotations


class FirewallError(Exception):
    """Base of every error raised on purpose; its text is one sentence for the user."""


class InvalidInput(FirewallError):
    """A field of a request is not what it must be. Safe to show to a remote client."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field


class UnsupportedMedia(InvalidInput):
    """The body of an HTTP request has a media type or a content coding that is not served."""


class NotFound(FirewallError):
    """The named model or version is not served."""


class Overloaded(FirewallError):
    """The queue is full."""

    def __init__(self, problem: str, retry_after: float) -> None:
        super().__init__(problem)
        #: seconds
        self.retry_after = retry_after


class TooLarge(FirewallError):
    """A message is over the size limit."""


class DeadlineExceeded(FirewallError):
    """The caller's deadline passed before the answer was computed."""


class Cancelled(FirewallError):
    """The caller went away."""


class NotReady(FirewallError):
    """The model has not passed its self-test, or the server is draining."""


class Unauthenticated(FirewallError):
    """The client does not say who it is, or nobody knows it."""


class Unsupported(FirewallError):
    """The bundle cannot do what was asked."""


class Refused(FirewallError):
    """The firewall suspects rows of the request and answers none of it."""

    def __init__(self, problem: str, request_id: str, rows: tuple[int, ...] = ()) -> None:
        super().__init__(problem)
        self.request_id = request_id
        #: The suspected rows; empty where a client was not told.
        self.rows = rows


class RemoteError(FirewallError):
    """Client side: the server answered with a status that has no class of its own."""

    def __init__(self, problem: str, status: str) -> None:
        super().__init__(problem)
        #: name of the gRPC status code, such as "UNAVAILABLE"
        self.status = status


class UpstreamError(FirewallError):
    """The classifier behind the firewall failed; its words are for the log, not for clients."""

    def __init__(self, problem: str, status: str = "INTERNAL") -> None:
        super().__init__(problem)
        #: name of the gRPC status code that it gave
        self.status = status


class StateUnavailable(FirewallError):
    """The store of what monitors remember cannot be asked."""


class ConfigError(FirewallError):
    """A policy, recipe or guard specification is wrong."""


class PluginError(FirewallError):
    """Something is wrong with a plugin; the text names it."""


class PluginNotFound(PluginError):
    """No plugin of that kind and name is installed."""


class PluginBroken(PluginError):
    """A plugin cannot be imported or breaks the contract."""


class EvidenceMissing(PluginError):
    """A detector needs evidence that this classifier or guard cannot give."""


class StageFault(FirewallError):
    """A stage returned a wrong shape or dtype; the text names it."""


class CalibrationError(FirewallError):
    """Calibration cannot be made or used as asked."""


class SampleTooSmall(CalibrationError):
    """The calibration sample is too small to promise the false-positive rate asked for."""


class ParityError(FirewallError):
    """The compiled graph and the torch module disagree."""


class TrainingError(FirewallError):
    """A step of a recipe run failed; what was finished is kept."""


class GateFailed(FirewallError):
    """A bundle does not reach what its recipe asks for."""


class BundleError(FirewallError):
    """A bundle cannot be used; the text names the file."""


class BundleMissing(BundleError):
    """There is no bundle at that place."""


class BundleMalformed(BundleError):
    """The manifest or a file in it is not what the schema says."""


class BundleTooLarge(BundleError):
    """A file, or a tensor of a graph, is over its cap."""


class BundleAltered(BundleError):
    """A file is missing, extra, or not the one that was signed."""


class BundleUntrusted(BundleError):
    """The signer is not trusted, or the signature is not theirs."""


class BundleVersion(BundleError):
    """The schema version is unknown to this program."""


class BundleVersionTooOld(BundleError):
    """The bundle is older than the policy's floor, or than the bundle that is live."""
