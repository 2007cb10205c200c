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
import yaml

from firewall.screening.policy import Policy
from firewall.serve.metrics import Metrics
from firewall.serve.settings import Settings, fields
from firewall.upstream.settings import UpstreamSettings

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
    rows = re.findall(r"^\| `([^`]*(?:firewall_|grpc_|http_)[^`]*)` \|", table, re.MULTILINE)
    assert rows
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
    """Flags of `firewall serve`, which are the names of the settings."""
    return {f"--{name.replace('_', '-')}" for name, _, _ in fields()}


def containers(document: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Containers of a Kubernetes document, each with its pod."""
    spec = document.get("spec", {})
    pod = spec.get("template", {}).get("spec") or spec.get("predictor")
    for one in (pod or {}).get("containers", ()):
        yield one, pod


def unknown(arguments: list[str]) -> set[str]:
    """Flags that `firewall serve` does not have; values are checked as the settings check them."""
    assert arguments[0] == "serve"
    given = dict(one.removeprefix("--").split("=") for one in arguments if "=" in one)
    Settings(**{name.replace("-", "_"): value for name, value in given.items()})
    if "upstream" in given:
        UpstreamSettings.parse(given["upstream"])
    return {one.partition("=")[0] for one in arguments if one.startswith("--")} - flags()


def test_a_flag_that_does_not_exist_is_found() -> None:
    assert unknown(["serve", "bundle", "--watch", "--transport"]) == {"--transport"}


#: Ports by the names that probes, services and policies use.
PORTS = {
    "grpc": Settings.model_fields["grpc_port"].default,
    "http": Settings.model_fields["rest_port"].default,
    "metrics": Settings.model_fields["operations_port"].default,
}


def test_compose_starts_what_there_is() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    firewall = services["firewall"]
    assert unknown(firewall["command"]) == set()
    assert firewall["read_only"] is True
    # A client that reaches the classifier directly bypasses the firewall.
    assert "ports" not in services["classifier"]
    published = {int(one.rpartition(":")[2]) for one in firewall["ports"]}
    assert published == {PORTS["grpc"], PORTS["http"]}
    assert str(PORTS["metrics"]) in firewall["expose"]
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
    kinds = {one["kind"]: one for one in documents}
    assert ("ConfigMap", "firewall-policy") in {
        (one["kind"], one["metadata"]["name"]) for one in documents
    }
    seen = set()
    for document in documents:
        assert document["apiVersion"]
        for container, pod in containers(document):
            seen.add(container["name"])
            if container["image"].startswith("robustness-firewall:"):
                # KServe knows the container that clients reach by its name.
                kserve = document["kind"] == "InferenceService"
                assert container["name"] == ("transformer-container" if kserve else "firewall")
                assert unknown(container["args"]) == set()
                # The default is loopback, where Prometheus is not.
                assert "--operations-host=::" in container["args"]
                ports = {one["name"]: one["containerPort"] for one in container["ports"]}
                assert ports == PORTS
                for probe in ("readinessProbe", "livenessProbe"):
                    asked = container[probe]["httpGet"]
                    assert asked["port"] == "http"
                    assert asked["path"] in ("/v2/health/ready", "/v2/health/live")
            security = container["securityContext"]
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert security["readOnlyRootFilesystem"] is True
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
            mounted = {one["name"] for one in container["volumeMounts"]}
            assert mounted <= {one["name"] for one in pod["volumes"]}
    assert seen & {"firewall", "transformer-container"}
    assert "Service" in kinds or "InferenceService" in kinds


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_only_prometheus_reaches_the_operations_port(overlay: Path) -> None:
    done = subprocess.run(
        [tool("kubectl"), "kustomize", str(overlay)], capture_output=True, text=True, check=False
    )
    if "unknown command" in done.stderr:
        pytest.skip("this kubectl has no kustomize")
    documents = list(yaml.safe_load_all(done.stdout))
    [policy] = [one for one in documents if one["kind"] == "NetworkPolicy"]
    rules = {
        port["port"]: rule.get("from") for rule in policy["spec"]["ingress"]
        for port in rule["ports"]
    }  # fmt: skip
    assert rules.keys() == PORTS.keys()
    assert rules["grpc"] is None
    assert rules["http"] is None
    [source] = rules["metrics"]
    assert source["podSelector"]["matchLabels"]
    assert source["namespaceSelector"]["matchLabels"]


def test_the_policy_of_the_base_is_one() -> None:
    # Monitor mode first: a guard that refuses from the first minute is switched off in the second.
    assert Policy.load(DEPLOY / "kubernetes" / "policy" / "policy.toml").mode == "monitor"


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
        [exposed] = re.findall(r"^EXPOSE (.*)$", stage, re.MULTILINE)
        assert {int(port) for port in exposed.split()} == set(PORTS.values())


def test_envoy_lets_the_services_of_clients_through_and_no_other() -> None:
    body = yaml.safe_load((DEPLOY / "envoy" / "envoy.yaml").read_text())
    [listener] = body["static_resources"]["listeners"]
    [filters] = [one["filters"] for one in listener["filter_chains"]]
    routes = filters[0]["typed_config"]["route_config"]["virtual_hosts"][0]["routes"]
    places = {
        one["match"].get("prefix", one["match"].get("path_separated_prefix")):
        one["route"]["cluster"] for one in routes
    }  # fmt: skip
    assert places == {
        "/inference.GRPCInferenceService/": "grpc",
        "/firewall.v1.FirewallService/": "grpc",
        "/v2": "rest",
        "/firewall/v1": "rest",
    }
    ports = {
        cluster["name"]: endpoint["endpoint"]["address"]["socket_address"]["port_value"]
        for cluster in body["static_resources"]["clusters"]
        for group in cluster["load_assignment"]["endpoints"]
        for endpoint in group["lb_endpoints"]
    }
    assert ports == {"grpc": PORTS["grpc"], "rest": PORTS["http"]}


@pytest.mark.slow
def test_the_image_s_program_runs_in_a_clean_environment(tmp_path: Path) -> None:
    """As the Dockerfile installs the CPU image: no torch, and all that serve needs."""
    python, builder = (tmp_path / name / "bin" / "python" for name in ("venv", "build"))

    def pip(interpreter: Path, *arguments: str) -> None:
        subprocess.run([str(interpreter), "-m", "pip", *arguments], cwd=ROOT, check=True)

    for interpreter in (python, builder):
        subprocess.run([sys.executable, "-m", "venv", str(interpreter.parents[1])], check=True)
    hashed = ("install", "--quiet", "--require-hashes", "--no-deps")
    pip(builder, *hashed, "-r", "deploy/requirements-build.txt")
    pip(builder, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
        "--wheel-dir", str(tmp_path / "wheels"), ".")  # fmt: skip
    pip(python, *hashed, "-r", "deploy/requirements.txt", "-r", "deploy/requirements-cpu.txt")
    [wheel] = (tmp_path / "wheels").iterdir()
    pip(python, "install", "--quiet", "--no-deps", "--no-index", str(wheel))
    code = "import firewall.serve.server, firewall_plugins.monitors.query_similarity, redis"
    subprocess.run([str(python), "-c", code], cwd=tmp_path, check=True)
    assert subprocess.run([str(python), "-c", "import torch"], check=False,
                          capture_output=True).returncode  # fmt: skip
    done = subprocess.run(
        [str(python.with_name("firewall")), "serve", "nowhere"], cwd=tmp_path,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "nowhere: no such directory" in done.stderr
