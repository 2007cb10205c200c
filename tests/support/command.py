"""`firewall ...` without a process of its own: importing takes longer than most commands do."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from unittest import mock

from firewall.cli import main


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """What the program would have answered."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with (
        mock.patch.object(sys, "argv", ["firewall", *arguments]),
        mock.patch.dict(os.environ, {"COLUMNS": "200"}),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())
