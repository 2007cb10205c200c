"""Addresses that clients are given: checked before anything waits, and loopback without a proxy."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

import pytest

from firewall.client import Client
from firewall.errors import ConfigError
from firewall.protocol.addresses import check_address, proxy_options


@pytest.mark.parametrize(
    "address",
    ["localhost:8081", "10.0.0.7:1", "[::1]:8081", "[fe80::1%eth0]:80", "cats.default.svc:8081",
     "unix:/run/firewall.sock", "dns:///cats:8081", "a_b-c.example:65535"],
)  # fmt: skip
def test_addresses_of_servers(address: str) -> None:
    assert check_address(address) == address


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://localhost:8081", "has the scheme 'http'; expected host:port"),
        ("grpc://cats:8001/model", "has the scheme 'grpc'"),
        ("localhost", "'localhost'; expected host:port, such as localhost:8081"),
        ("::1", "expected host:port, such as localhost:8081 or [::1]:8081"),
        ("localhost:0", "expected host:port"),
        ("localhost:70000", "expected host:port"),
        ("me@host:80", "expected host:port"),
        ("", "expected host:port"),
    ],
)
def test_what_is_no_address_is_said_at_once(address: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Client(address)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("address", "direct"),
    [("localhost:1", True), ("127.0.0.9:1", True), ("[::1]:1", True), ("10.0.0.1:1", False),
     ("cats:1", False), ("unix:/x", False)],
)  # fmt: skip
def test_only_loopback_is_kept_from_a_proxy(address: str, direct: bool) -> None:
    assert bool(proxy_options(address)) is direct


def test_a_client_of_this_machine_does_not_ask_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """gRPC would send even 127.0.0.1 through `http_proxy`."""
    asked = threading.Event()
    with (
        socket.create_server(("127.0.0.1", 0)) as proxy,
        socket.create_server(("127.0.0.1", 0)) as server,
    ):

        def accept() -> None:
            try:
                proxy.accept()
                asked.set()
            except OSError:
                return

        threading.Thread(target=accept, daemon=True).start()
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        monkeypatch.delenv("no_proxy", raising=False)
        with Client(f"127.0.0.1:{server.getsockname()[1]}", timeout=20.0) as client:
            caller = threading.Thread(target=lambda: _try(client), daemon=True)
            caller.start()
            connection, _ = server.accept()
            connection.close()
        assert not asked.is_set()


def _try(client: Client) -> None:
    with suppress(Exception):
        client.describe()
