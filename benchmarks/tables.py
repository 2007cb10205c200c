"""Writes the tables of README.md from the results that commands measured.

    python -m benchmarks.tables [--check]

Between `<!-- table: NAME -->` and `<!-- end -->` nothing is written by hand.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from firewall.train.card import (
    DETECTION_HEAD,
    FALSE_POSITIVE_HEAD,
    detection_rows,
    false_positive_rows,
)

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md",)
_BLOCK = re.compile(r"(<!-- table: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def result(name: str) -> dict[str, Any]:
    """What a benchmark wrote."""
    path = ROOT / "benchmarks" / "results" / name / "result.json"
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


def false_positives() -> list[str]:
    rows = list(FALSE_POSITIVE_HEAD)
    for name, figures in result("default-bundle")["clean"].items():
        rows += false_positive_rows(name, figures)
    return rows


def detection() -> list[str]:
    return [*DETECTION_HEAD, *detection_rows(result("default-bundle")["attacks"])]


def latency() -> list[str]:
    found = result("latency")
    rows = [
        "| threads | bare p50 | guarded p50 | ratio of p50 | of means | of p95 | rows doubted |",
        "|---|---|---|---|---|---|---|",
    ]
    for run in found["in_process"]:
        ratio = run["ratio"]
        rows.append(
            f"| {run['threads']} | {run['bare']['p50_ms']:.1f} ms | "
            f"{run['guarded']['p50_ms']:.1f} ms | {ratio['p50']:.2f} | {ratio['mean']:.2f} | "
            f"{ratio['p95']:.2f} | {100 * run['escalated_share']:.0f} % |"
        )
    start = found["start"]
    rows += [
        "",
        f"From `firewall serve` to ready {start['ready_seconds']:.1f} s, to the first answer "
        f"{start['first_answer_seconds']:.1f} s, resident {start['resident_mib']:.0f} MiB "
        f"(medians of {start['runs']} starts).",
    ]
    return rows


TABLES = {"false-positives": false_positives, "detection": detection, "latency": latency}


def render(text: str) -> str:
    """A page with its tables anew."""

    def block(match: re.Match[str]) -> str:
        return match[1] + "\n".join(TABLES[match[2]]()) + "\n" + match[3]

    return _BLOCK.sub(block, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if stale")
    arguments = parser.parse_args()
    stale = [page for page in PAGES if render(page.read_text()) != page.read_text()]
    for page in stale:
        print(f"{page.name}: {'stale' if arguments.check else 'written'}", file=sys.stderr)
        if not arguments.check:
            page.write_text(render(page.read_text()))
    if stale and arguments.check:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
