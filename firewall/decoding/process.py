"""A child process that decodes an image at a time and may be killed at any moment."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from firewall.decoding.process_protocol import REPLY_HEADER, DecodeRequest, reply_header
from firewall.errors import InvalidInput

#: Seconds between two looks at the deadline and the caller.
_LOOK = 0.05
#: Without them the child would find neither this package nor its libraries. Nothing else of the
#: environment is passed on: it may hold secrets, and the child reads files of strangers.
_ENVIRONMENT = ("LD_LIBRARY_PATH", "LANG", "LC_ALL", "SYSTEMROOT")


def default_command(memory: int, idle: float) -> Sequence[str]:
    """The command that starts `firewall.decoding.worker`."""
    # -P: a file named numpy.py in the working directory is no library.
    return (
        sys.executable, "-P", "-m", "firewall.decoding.worker", str(memory), str(idle),
    )  # fmt: skip


class ProcessDied(Exception):
    """The child ended, or answered what no decoder answers, before it had decoded the image."""


class DecodeProcess:
    """A child process and the socket to it. Used by one thread at a time; `kill` by any."""

    def __init__(self, command: Sequence[str]) -> None:
        """Start the child.

        Raises:
            OSError: it cannot be started.

        """
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(_LOOK)
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        # The libraries of numpy reserve memory for a thread a core, and no matrix is multiplied.
        environment["OPENBLAS_NUM_THREADS"] = environment["OMP_NUM_THREADS"] = "1"
        try:
            with theirs:
                # Only the socket is inherited: close_fds is the default.
                self._process = subprocess.Popen(
                    command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL, env=environment
                )
        except OSError:
            self._socket.close()
            raise
        self._killed = False
        self.used = time.monotonic()
        # Takes the exit status when the child ends, so that no zombie stays.
        threading.Thread(target=self._process.wait, name="decoder-wait", daemon=True).start()

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return int(self._process.pid)

    @property
    def alive(self) -> bool:
        """Whether the child may be given another image."""
        return not self._killed and self._process.poll() is None

    def decode(
        self, request: DecodeRequest, field: str, *, until: float, check: Callable[[], None]
    ) -> npt.NDArray[np.uint8]:
        """Have an image decoded: [H, W, C] uint8. The child is killed unless it answered.

        Args:
            request: the image.
            field: for errors.
            until: time.monotonic() at which the child is killed.
            check: called while waiting; raises when the caller is gone.

        Raises:
            InvalidInput: what `decode_image` raises.
            TimeoutError: it took too long.
            ProcessDied: the child crashed.

        """
        target = request.target
        try:
            self._send(request.header(), until, check)
            self._send(request.data, until, check)
            header = bytes(self._receive(REPLY_HEADER, until, check))
            good, length = reply_header(header, target)
            body = self._receive(length, until, check)
        except TimeoutError:
            self.kill()
            raise
        except (OSError, EOFError, ValueError) as error:
            self.kill()
            raise ProcessDied from error
        except BaseException:
            self.kill()
            raise
        self.used = time.monotonic()
        if good:
            shape = (target.height, target.width, target.channels)
            return np.frombuffer(body, np.uint8).reshape(shape)
        text = body.decode(errors="replace")
        raise InvalidInput(field, text if text.isprintable() else "cannot be decoded")

    def kill(self) -> None:
        """End the child at once. A thread that waits for it gets `ProcessDied`."""
        self._killed = True
        self._process.kill()

    def close(self) -> None:
        """End the child and close the socket; no thread may use it any more."""
        self.kill()
        self._socket.close()

    def _send(self, data: bytes, until: float, check: Callable[[], None]) -> None:
        view = memoryview(data)
        while view:
            with contextlib.suppress(TimeoutError):
                view = view[self._socket.send(view) :]
            _look(until, check)

    def _receive(self, size: int, until: float, check: Callable[[], None]) -> bytearray:
        body = bytearray(size)
        view = memoryview(body)
        while view:
            with contextlib.suppress(TimeoutError):
                received = self._socket.recv_into(view)
                if not received:
                    raise EOFError
                view = view[received:]
            # Between parts too: a child that was broken into may send a byte at a time.
            _look(until, check)
        return body


def _look(until: float, check: Callable[[], None]) -> None:
    check()
    if time.monotonic() >= until:
        raise TimeoutError
