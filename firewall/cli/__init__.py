"""Commands. A composition root: it puts parts together and prints; it decides nothing."""

import os
import sys
import tempfile

from firewall.cores import usable_cores


def main() -> None:
    """Run the command line."""
    if sys.argv[1:2] != ["serve"]:
        _run()
        return
    # Before anything is imported that takes time.
    from firewall.serve.process.signals import listen

    signals = listen()
    try:
        _run()
    except BaseException:
        if not signals.ended_start:
            raise
        # Told to stop while it started. Threads that load a model are not waited for.
        os._exit(0)


def _run() -> None:
    cores = usable_cores()
    if cores < (os.cpu_count() or 1):
        # Before torch is imported, which looks at the machine's cores and at no quota.
        os.environ.setdefault("OMP_NUM_THREADS", str(cores))
    if not os.access(os.path.expanduser("~"), os.W_OK):
        # matplotlib would say on every run that it found no folder for its cache.
        os.environ.setdefault(
            "MPLCONFIGDIR", os.path.join(tempfile.gettempdir(), f"matplotlib-{os.getuid()}")
        )
    from firewall.cli.app import main as run

    run()
