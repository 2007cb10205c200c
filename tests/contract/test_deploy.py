"""What `deploy/` says is what the program does: flags, ports, metrics, and files that parse."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from firewall.cli.app import app
from firewall.screening.policy import Policy
from firewall.serve.metrics import Metrics

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
PROMETHEUS = DEPLOY / "prometheus"
OVERLAYS = sorted(path.parent for path in DEPLOY.glob("kubernetes/overlays/*/kustomization.yaml"))
ALERTS = yaml.safe_load((PROMETHEUS / "alerts.yaml").read_text())["groups"][0]["rules"]
DASHBOARD = json.loads((DEPLOY / "grafana" / "firewall.json").read_text())


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def exported() -> set[str]:
    """Names that a scrape shows."""
    names = {"up"}
    for family in Metrics().registry.collect():
        ends = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
        names |= {family.name + end for end in ends[family.type]}
    return names


def metrics_of(expression: str) -> set[str]:
    """Names in a query that are no functions, labels or keywords."""
    bare = re.sub(r'"[^"]*"', "", expression)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\b(by|without|on)\s*\([^)]*\)", "", bare)
    words = re.findall(r"[a-zA-Z_:][a-zA-Z0-9_:]*(?!\w*\s*\()", bare)
    return {word for word in words if word not in ("and", "or", "unless")}


def queries() -> list[tuple[str, str]]:
    alerts = [(rule["alert"], rule["expr"]) for rule in ALERTS]
    panels = [(p["title"], t["expr"]) for p in DASHBOARD["panels"] for t in p["targets"]]
    table = (ROOT / "docs" / "operations.md").read_text()
    rows = re.findall(r"^\| `([^`]*(?:firewall_|grpc_)[^`]*)` \|", table, re.MULTILINE)
    return [*alerts, *panels, *((row, row.partition(" rising")[0]) for row in rows)]


@pytest.mark.parametrize(("name", "query"), queries(), ids=[name for name, _ in queries()])
def test_every_query_asks_for_what_is_exported(name: str, query: str) -> None:
    asked = metrics_of(query)
    assert asked
    assert asked - exported() == set()


def test_metrics_are_found_in_a_query() -> None:
    query = 'sum by (model) (rate(a_total{x="b_total"}[5m])) / on (c) d > 1 or e_total'
    assert metrics_of(query) == {"a_total", "d", "e_total"}


def test_the_dashboard_is_what_its_script_writes() -> None:
    done = subprocess.run(
        [sys.executable, str(DEPLOY / "grafana" / "dashboard.py"), "--check"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_every_alert_has_a_page_and_a_test() -> None:
    runbook = (ROOT / "docs" / "runbook.md").read_text()
    tests = (PROMETHEUS / "alerts_test.yaml").read_text()
    for rule in ALERTS:
        name = rule["alert"]
        assert f"\n## {name}\n" in runbook
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{name.lower()}"
        assert f"alertname: {name}\n" in tests


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "rules", "alerts.yaml"],
        ["test", "rules", "alerts_test.yaml"],
        ["check", "config", "prometheus.yaml"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_promtool_agrees(arguments: list[str]) -> None:
    done = subprocess.run(
        [tool("promtool"), *arguments], cwd=PROMETHEUS, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


# --- commands ------------------------------------------------------------------------------------


def flags() -> set[str]:
    command: Any = typer.main.get_command(app)
    return {name for one in command.commands["serve"].params for name in one.opts}


def containers(document: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Containers of a Kubernetes document, each with its pod."""
    pod = document.get("spec", {}).get("template", {}).get("spec")
    for one in (pod or {}).get("containers", ()):
        yield one, pod


def unknown(arguments: list[str]) -> set[str]:
    assert arguments[0] == "serve"
    return {one.partition("=")[0] for one in arguments if one.startswith("--")} - flags()


def test_compose_starts_what_there_is() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    firewall = services["firewall"]
    assert unknown(firewall["command"]) == set()
    assert firewall["read_only"] is True
    # Whoever can ask the classifier directly goes around the firewall.
    assert "ports" not in services["classifier"]
    for service in services.values():
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            if source.startswith(("./prometheus", "./grafana")):
                assert (DEPLOY / source).exists(), source


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_overlays_build_and_run_without_root(overlay: Path) -> None:
    done = subprocess.run(
        [tool("kubectl"), "kustomize", str(overlay)], capture_output=True, text=True, check=False
    )
    if "unknown command" in done.stderr:
        pytest.skip("this kubectl has no kustomize")
    assert done.returncode == 0, done.stderr
    documents = list(yaml.safe_load_all(done.stdout))
    seen = set()
    for document in documents:
        assert document["apiVersion"]
        for container, pod in containers(document):
            seen.add(container["name"])
            if container["name"] == "firewall":
                assert unknown(container["args"]) == set()
                ports = {one["name"]: one["containerPort"] for one in container["ports"]}
                assert ports == {"grpc": 8081, "http": 8082}
            security = container["securityContext"]
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert security["readOnlyRootFilesystem"] is True
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
            mounted = {one["name"] for one in container["volumeMounts"]}
            assert mounted <= {one["name"] for one in pod["volumes"]}
    assert "firewall" in seen
    names = {(one["kind"], one["metadata"]["name"]) for one in documents}
    assert ("Service", "firewall") in names


def test_the_policy_of_the_base_is_one() -> None:
    # Eases in: a guard that refuses from the first minute is switched off in the second.
    assert Policy.load(DEPLOY / "kubernetes" / "base" / "policy.toml").mode == "monitor"


def test_the_image_has_no_compiler_and_no_root() -> None:
    stages = re.split(r"^FROM ", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE)[1:]
    by_name = {stage.split()[2]: stage for stage in stages}
    for name in ("cpu", "gpu"):
        stage = by_name[name]
        assert "pip install" not in stage
        assert "apt-get" not in stage
        assert re.search(r"^USER 65532:65532$", stage, re.MULTILINE)
        command = json.loads(re.findall(r"^CMD (.*)$", stage, re.MULTILINE)[0])
        assert unknown(command) == set()
    # Extras that are installed exist.
    extras = re.findall(r"'\.\[([a-z,]+)\]'", by_name["build-cpu"])
    project = (ROOT / "pyproject.toml").read_text()
    for extra in extras[0].split(","):
        assert f"\n{extra} = [" in project


def test_envoy_lets_both_services_through_and_no_other() -> None:
    body = yaml.safe_load((DEPLOY / "envoy" / "envoy.yaml").read_text())
    [listener] = body["static_resources"]["listeners"]
    [filters] = [one["filters"] for one in listener["filter_chains"]]
    routes = filters[0]["typed_config"]["route_config"]["virtual_hosts"][0]["routes"]
    assert {one["match"]["prefix"] for one in routes} == {
        "/inference.GRPCInferenceService/", "/firewall.v1.FirewallService/",
    }  # fmt: skip


@pytest.mark.slow
def test_the_image_s_program_runs_in_a_clean_environment(tmp_path: Path) -> None:
    """As the Dockerfile's first stage installs it: no torch, and what serve needs is there."""
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    subprocess.run(
        [str(python), "-m", "pip", "install", "--quiet", "-c", "constraints.txt",
         ".[postgresql,redis,tracing]"],
        cwd=ROOT, check=True,
    )  # fmt: skip
    code = "import firewall.serve.server, firewall_plugins.monitors.query_similarity, redis"
    subprocess.run([str(python), "-c", code], cwd=tmp_path, check=True)
    assert subprocess.run([str(python), "-c", "import torch"], check=False,
                          capture_output=True).returncode  # fmt: skip
    done = subprocess.run(
        [str(python.with_name("firewall")), "serve", "nowhere"], cwd=tmp_path,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "nowhere: no such directory" in done.stderr
