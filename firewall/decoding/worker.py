"""A process that decodes images for a server, which kills it when it takes too long.

    python -m firewall.decoding.worker BYTES SECONDS

Standard input is a socket, on which requests and replies alternate (`decode_wire`). The process
ends when the socket closes or nothing came for SECONDS. It may map BYTES more of memory than it has
when it starts.
"""

from __future__ import annotations

import contextlib
import socket
import sys

from firewall.decoding import process_protocol
from firewall.decoding.decode import decode, plan_decoding
from firewall.errors import InvalidInput


def main(arguments: list[str]) -> None:
    """Serve requests until the socket closes or is idle for too long."""
    memory, idle = int(arguments[0]), float(arguments[1])
    confine(memory)
    with socket.socket(fileno=0) as connection:
        while True:
            connection.settimeout(idle)
            try:
                request = process_protocol.read_request(connection)
            except (OSError, EOFError):
                return
            connection.settimeout(None)
            try:
                plan = plan_decoding(
                    request.data,
                    request.target,
                    field="image",
                    max_pixels=request.max_pixels,
                    max_scan_pixels=request.max_scan_pixels,
                )
                pixels = decode(request.data, plan, request.target, field="image")
            except InvalidInput as error:
                reply = process_protocol.problem(str(error).removeprefix("image: "))
            except MemoryError:
                reply = process_protocol.problem("needs more memory to decode than there is")
            else:
                reply = process_protocol.pixels(pixels)
            try:
                connection.sendall(reply)
            except OSError:
                return


def confine(memory: int) -> None:
    """Bound this process: memory to map, no core dumps, and first to go when memory is short."""
    # Not on every system, and not everywhere permitted.
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with open("/proc/self/statm") as file:
            mapped = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + memory, mapped + memory))
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


if __name__ == "__main__":
    main(sys.argv[1:])
