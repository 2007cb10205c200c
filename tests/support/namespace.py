"""Run a command in a network of its own, and collect the names that it looks up.

    python -m tests.support.namespace RESULT COMMAND ...

Within a new network and mount namespace, where only loopback is, a name server answers "no such
name" to every question and writes the names to a file.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

#: To enter the namespaces; needs the rights of an administrator.
UNSHARE = ("unshare", "--net", "--mount", "--fork", "--kill-child")
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1


def possible() -> bool:
    """Whether namespaces can be made here."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode == 0


def looked_up(
    command: list[str], folder: Path, *, seconds: float = 60, env: dict[str, str] | None = None
) -> tuple[list[str], subprocess.CompletedProcess[str]]:
    """Names that a command looks up, and how it ended."""
    result = folder / "names.json"
    done = subprocess.run(
        [*UNSHARE, sys.executable, "-m", "tests.support.namespace", str(result), *command],
        capture_output=True, text=True, timeout=seconds, check=False,
        env=os.environ | (env or {}), cwd=Path(__file__).parents[2],
    )  # fmt: skip
    return json.loads(result.read_text(encoding="utf-8")), done


def bring_loopback_up() -> None:
    """Give the namespace its own loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sh", b"lo", 0)
        flags = struct.unpack("16sh", fcntl.ioctl(sock, _SIOCGIFFLAGS, request)[:18])[1]
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh", b"lo", flags | _IFF_UP))


def _name(question: bytes) -> str:
    labels, place = [], 12
    while question[place]:
        labels.append(question[place + 1 : place + 1 + question[place]].decode())
        place += 1 + question[place]
    return ".".join(labels)


def _serve_names(sock: socket.socket, names: list[str]) -> None:
    while True:
        question, sender = sock.recvfrom(4096)
        names.append(_name(question))
        # An answer, of which recursion was asked and is there: no such name.
        sock.sendto(question[:2] + b"\x81\x83" + question[4:], sender)


def main() -> None:
    """Run the command."""
    bring_loopback_up()
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as resolv:
        resolv.write("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
        resolv.flush()
        subprocess.run(["mount", "--bind", resolv.name, "/etc/resolv.conf"], check=True)
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", 53))
        names: list[str] = []
        threading.Thread(target=_serve_names, args=(sock, names), daemon=True).start()
        status = subprocess.run(sys.argv[2:], check=False).returncode
        Path(sys.argv[1]).write_text(json.dumps(sorted(set(names))), encoding="utf-8")
    sys.exit(status if status >= 0 else 128 - status)


if __name__ == "__main__":
    main()
