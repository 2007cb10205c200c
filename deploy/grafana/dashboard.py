"""Write firewall.json, the dashboard, beside this script.

python deploy/grafana/dashboard.py [--check]
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OUT = Path(__file__).with_name("firewall.json")
_SOURCE = {"type": "prometheus", "uid": "${source}"}
_MODEL = 'model=~"$model"'


@dataclass(frozen=True)
class Panel:
    """A graph, half a row wide. Queries are by legend."""

    title: str
    queries: dict[str, str]
    unit: str = "short"
    description: str = ""


def _quantile(share: float, metric: str, by: str) -> str:
    inside = f"sum by (le, {by}) (rate({metric}_bucket[$__rate_interval]))"
    return f"histogram_quantile({share}, {inside})"


PANELS: tuple[Panel, ...] = (
    Panel(
        "Ready",
        {"{{instance}}": "firewall_ready"},
        description="0: self-test not passed, or draining",
    ),
    Panel(
        "Requests by status",
        {
            "gRPC {{grpc_code}}": "sum by (grpc_code) "
            "(rate(grpc_server_handled_total[$__rate_interval]))",
            "REST {{status}}": "sum by (status) "
            "(rate(http_server_requests_total[$__rate_interval]))",
        },
        "reqps",
    ),
    Panel(
        "Rows by verdict",
        {
            "{{verdict}}": "sum by (verdict) "
            f"(rate(firewall_rows_total{{{_MODEL}}}[$__rate_interval]))"
        },
        "ops",
    ),
    Panel(
        "Share of rows refused",
        {
            "{{model}}": "sum by (model) (rate(firewall_rows_total"
            f'{{{_MODEL},verdict=~"reject|flag"}}[$__rate_interval])) / '
            f"sum by (model) (rate(firewall_rows_total{{{_MODEL}}}[$__rate_interval]))"
        },
        "percentunit",
        "On clean traffic the policy's false-positive rate.",
    ),
    Panel(
        "Rows by detector that spoke against them",
        {
            "{{detector}}": "sum by (detector) "
            f"(rate(firewall_reasons_total{{{_MODEL}}}[$__rate_interval]))"
        },
        "ops",
    ),
    Panel(
        "Evidence against calibration",
        {"{{model}}": f"firewall_calibration_evidence{{{_MODEL}}}"},
        description="1 is an alarm: the promised rate no longer holds for this traffic.",
    ),
    Panel(
        "p-values",
        {
            "up to {{le}}": f"sum by (le) (rate(firewall_p_value_rows_total{{{_MODEL}}}"
            "[$__rate_interval]))"
        },
        "ops",
        "Rows of each bucket, which ends at its p-value. On clean traffic a bucket's share of all "
        "rows is its width.",
    ),
    Panel(
        "Latency of answers",
        {
            "p50 {{grpc_method}}": _quantile(0.5, "grpc_server_handling_seconds", "grpc_method"),
            "p99 {{grpc_method}}": _quantile(0.99, "grpc_server_handling_seconds", "grpc_method"),
            "p50 {{route}}": _quantile(0.5, "http_server_request_seconds", "route"),
            "p99 {{route}}": _quantile(0.99, "http_server_request_seconds", "route"),
        },
        "s",
    ),
    Panel(
        "Time of a batch, by stage",
        {"p50 {{stage}}": _quantile(0.5, "firewall_stage_seconds", "stage")},
        "s",
    ),
    Panel(
        "Time that a batch waits",
        {
            "p99 of the first in a batch": _quantile(0.99, "firewall_queue_wait_seconds", "model"),
        },
        "s",
    ),
    Panel("Rows that wait", {"{{model}}": f"firewall_queue_rows{{{_MODEL}}}"}),
    Panel(
        "Rows of a batch",
        {"p50 {{model}}": _quantile(0.5, "firewall_batch_rows", "model")},
    ),
    Panel(
        "Share of rows for which the expensive tier ran",
        {
            "{{model}}": "sum by (model) (rate(firewall_escalated_rows_total"
            f"{{{_MODEL}}}[$__rate_interval])) / "
            f"sum by (model) (rate(firewall_rows_total{{{_MODEL}}}[$__rate_interval]))"
        },
        "percentunit",
    ),
    Panel(
        "Rows on which a stage failed",
        {"{{model}}": f"sum by (model) (rate(firewall_fault_rows_total{{{_MODEL}}}[5m]))"},
        "ops",
    ),
    Panel(
        "Shadow: rows by live and candidate's verdict",
        {
            "{{live}}, {{shadow}}": "sum by (live, shadow) "
            f"(rate(firewall_shadow_rows_total{{{_MODEL}}}[$__rate_interval]))",
            "another class": "sum(rate(firewall_shadow_label_changes_total"
            f"{{{_MODEL}}}[$__rate_interval]))",
            "not compared, {{why}}": "sum by (why) "
            f"(rate(firewall_shadow_missed_total{{{_MODEL}}}[$__rate_interval]))",
        },
        "ops",
    ),
    Panel(
        "Changes of what is served",
        {
            "{{change}}, {{result}}": "sum by (change, result) "
            f"(increase(firewall_changes_total{{{_MODEL}}}[$__rate_interval]))"
        },
    ),
    Panel(
        "Quarantine",
        {
            "{{state}}": "sum by (state) (rate(firewall_quarantine_rows_total[$__rate_interval]))",
            "waiting": "sum(firewall_quarantine_queue_rows)",
        },
        "short",
    ),
    Panel(
        "Audit lines dropped",
        {"{{instance}}": "rate(firewall_audit_dropped_total[$__rate_interval])"},
        "ops",
    ),
    Panel(
        "What is live",
        {"{{instance}}: {{model}} {{version}} {{digest}} {{provider}}": "firewall_bundle_info"},
    ),
)


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana reads it."""
    panels = [
        {
            "id": number + 1,
            "type": "timeseries",
            "title": panel.title,
            "description": panel.description,
            "datasource": _SOURCE,
            "gridPos": {"h": 8, "w": 12, "x": 12 * (number % 2), "y": 8 * (number // 2)},
            "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
            "targets": [
                {
                    "refId": chr(ord("A") + place),
                    "datasource": _SOURCE,
                    "expr": expr,
                    "legendFormat": legend,
                }
                for place, (legend, expr) in enumerate(panel.queries.items())
            ],
        }
        for number, panel in enumerate(PANELS)
    ]
    return {
        "uid": "robustness-firewall",
        "title": "Robustness firewall",
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {
            "list": [
                {"name": "source", "type": "datasource", "query": "prometheus"},
                {
                    "name": "model",
                    "type": "query",
                    "datasource": _SOURCE,
                    "query": "label_values(firewall_bundle_info, model)",
                    "includeAll": True,
                    "multi": True,
                    "allValue": ".*",
                    "current": {"text": "All", "value": "$__all"},
                },
            ]
        },
        "panels": panels,
    }


def main() -> None:
    """Write the file, or check that it is current."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="Change nothing; exit with 1 if the file is stale."
    )
    arguments = parser.parse_args()
    text = json.dumps(dashboard(), indent=1) + "\n"
    if OUT.exists() and OUT.read_text() == text:
        return
    if arguments.check:
        raise SystemExit(f"{OUT.name}: stale; run {Path(__file__).name}")
    OUT.write_text(text)


if __name__ == "__main__":
    main()
