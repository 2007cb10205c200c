"""Who may talk: TLS, certificates that change, tokens, rates; on real connections."""

from __future__ import annotations

import shutil
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from firewall.bundle.signing import Signer
from firewall.cli.app import app
from firewall.client import Client, OpenInferenceClient, Tls
from firewall.client.admin import AdminClient
from firewall.errors import NotReady, Overloaded, Unauthenticated
from tests.support.authority import Authority, Pair
from tests.support.served import Served, served
from tests.support.tiny import forged, wire


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def tls(authority: Authority, pair: Pair | None = None) -> Tls:
    return Tls(
        authority.file.read_bytes(),
        pair and pair.certificate.read_bytes(),
        pair and pair.key.read_bytes(),
    )


@pytest.fixture(scope="module")
def mutual(
    authority: Authority, tiny_path: Path, signer: Signer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """Its certificate lies in files of its own, which a test changes."""
    folder = tmp_path_factory.mktemp("mutual")
    pair = authority.server("first")
    shutil.copy(pair.certificate, folder / "tls.crt")
    shutil.copy(pair.key, folder / "tls.key")
    with served(
        tiny_path, signer, folder, "--false-positive-rate", "0.05",
        "--tls-cert", str(folder / "tls.crt"), "--tls-key", str(folder / "tls.key"),
        "--tls-client-ca", str(authority.file),
        "--admin-port", "0", "--admin-cert", str(pair.certificate), "--admin-key", str(pair.key),
        "--admin-client-ca", str(authority.file),
    ) as running:  # fmt: skip
        yield running


def shown(server: Served, authority: Authority) -> str:
    """The certificate of the server, in PEM."""
    return ssl.get_server_certificate(("127.0.0.1", server.grpc_port), ca_certs=str(authority.file))


def test_a_client_is_known_by_its_certificate(mutual: Served, authority: Authority) -> None:
    with Client(mutual.address, tls=tls(authority, authority.client("camera-7"))) as client:
        client.predict(forged(1), request_id="by-certificate")
    [line] = [one for one in mutual.events() if one.get("request_id") == "by-certificate"]
    assert line["client"] == "cert:camera-7"


def test_nobody_comes_in_without_one(mutual: Served, authority: Authority, tmp_path: Path) -> None:
    stranger = Authority(tmp_path, "stranger")
    for secret in (None, tls(authority), tls(authority, stranger.client("camera-7"))):
        with Client(mutual.address, tls=secret, timeout=3) as client, pytest.raises(NotReady):
            client.predict(wire(1, 20))


def test_operators_are_known_by_theirs(mutual: Served, authority: Authority) -> None:
    [serving] = [one for one in mutual.events() if one["event"] == "serving"]
    address = str(serving["admin"])
    with AdminClient(address, timeout=3) as nobody, pytest.raises(NotReady):
        nobody.status()
    with AdminClient(address, tls=tls(authority, authority.client("alice"))) as client:
        assert client.set_policy("mode = 'monitor'\nfalse_positive_rate = 0.05").mode == "monitor"
        assert client.rollback().mode == "enforce"
    changes = [one for one in mutual.events() if one["event"] == "changed"]
    assert [(one["change"], one["who"]) for one in changes] == [
        ("policy", "cert:alice"), ("rollback", "cert:alice"),
    ]  # fmt: skip


def test_a_certificate_that_changes_is_read_again_and_one_that_is_none_is_not(
    mutual: Served, authority: Authority
) -> None:
    folder = mutual.audit.parent
    before = shown(mutual, authority)
    secret = tls(authority, authority.client("camera-7"))
    with Client(mutual.address, tls=secret) as old:
        assert old.predict(wire(1, 20))
        other = authority.server("second")
        # As a half-written pair: the certificate without its key.
        shutil.copy(other.certificate, folder / "tls.crt")
        assert shown(mutual, authority) == before
        shutil.copy(other.key, folder / "tls.key")
        for _ in range(100):
            if shown(mutual, authority) != before:
                break
            time.sleep(0.1)
        assert shown(mutual, authority) == other.certificate.read_text()
        assert old.predict(wire(1, 20))
    with Client(mutual.address, tls=secret) as new:
        assert new.predict(wire(1, 20))


@pytest.fixture(scope="module")
def guarded(
    tiny_path: Path, signer: Signer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Served, str]]:
    """A server that knows one token, and answers two requests of a client at once."""
    folder = tmp_path_factory.mktemp("tokens")
    drawn = CliRunner().invoke(app, ["token", "camera-7"])
    secret = drawn.stderr.rpartition(" ")[2].strip()
    (folder / "tokens.toml").write_text("[clients]\n" + drawn.stdout)
    assert secret not in (folder / "tokens.toml").read_text()
    with served(
        tiny_path, signer, folder, "--false-positive-rate", "0.05",
        "--tokens", str(folder / "tokens.toml"), "--client-rate", "0.01", "--client-burst", "3",
    ) as running:  # fmt: skip
        yield running, secret


def test_a_client_is_known_by_its_token_and_has_its_rate(guarded: tuple[Served, str]) -> None:
    server, secret = guarded
    with OpenInferenceClient(server.address, model="tiny", token=secret) as client:
        assert client.ready()
    with Client(server.address, token=secret) as client:
        client.predict(forged(1), request_id="by-token")
        client.predict(wire(1, 20))
        with pytest.raises(Overloaded, match=r"more than 0\.01 rows a second") as caught:
            client.predict(wire(1, 20))
    assert 50 < caught.value.retry_after <= 100
    [line] = [one for one in server.events() if one.get("request_id") == "by-token"]
    assert line["client"] == "token:camera-7"


@pytest.mark.parametrize(
    ("token", "words"), [("", "expected 'Bearer' and a token"), ("wrong", "the token is unknown")]
)
def test_who_is_not_known_is_told_so(token: str, words: str, guarded: tuple[Served, str]) -> None:
    with (
        Client(guarded[0].address, token=token) as client,
        pytest.raises(Unauthenticated, match=words),
    ):
        client.predict(wire(1, 20))
