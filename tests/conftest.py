from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from firewall.bundle.signing import Signer
from firewall.bundle.store import Bundle, open_bundle
from firewall.stages.registry import Registry

# No test asserts a time, and the machine may be busy.
settings.register_profile("any-speed", deadline=None)
settings.load_profile("any-speed")


def pytest_configure(config: pytest.Config) -> None:
    """Where tests run side by side, each process and what it starts keep to one thread."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        import torch

        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)


#: Files of few and long tests. Begun last, one of them would keep the other processes waiting.
LONG = (
    "e2e/test_demo",
    "e2e/test_train",
    "e2e/test_torchrun",
    "e2e/test_evaluate",
    "e2e/test_certify",
    "unit/test_members",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, the others as they were."""

    def place(item: pytest.Item) -> int:
        name = f"{item.path.parent.name}/{item.path.stem}"
        return LONG.index(name) if name in LONG else len(LONG)

    items.sort(key=place)


@pytest.fixture(scope="session", autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keys of the user who runs the tests are left alone; so is the cache, unless CI names one."""
    folder = tmp_path_factory.mktemp("user")
    names = ("FIREWALL_CONFIG_DIR", "FIREWALL_CACHE_DIR", "FIREWALL_RUNTIME_DIR")
    before = {key: os.environ.get(key) for key in names}
    os.environ["FIREWALL_CONFIG_DIR"] = str(folder / "config")
    os.environ["FIREWALL_CACHE_DIR"] = str(folder / "cache")
    # The path of a Unix socket is at most 107 characters long.
    with tempfile.TemporaryDirectory(prefix="fw-") as sockets:
        os.environ["FIREWALL_RUNTIME_DIR"] = sockets
        yield
    for key, value in before.items():
        if value is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = value


@pytest.fixture(scope="session")
def registry() -> Registry:
    return Registry.discover()


@pytest.fixture(scope="session")
def signer() -> Signer:
    return Signer.generate()


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory, signer: Signer) -> Path:
    """A signed bundle that no test may change."""
    from tests.support.tiny import build_tiny

    return build_tiny(tmp_path_factory.mktemp("bundles") / "tiny", signer)


@pytest.fixture(scope="session")
def tiny(tiny_path: Path, signer: Signer) -> Bundle:
    return open_bundle(tiny_path, {signer.public})


@pytest.fixture
def tiny_copy(tiny_path: Path, tmp_path: Path) -> Callable[[], Path]:
    """Copies of the bundle, to be damaged."""

    def copy() -> Path:
        target = tmp_path / f"bundle-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(tiny_path, target)
        return target

    return copy
