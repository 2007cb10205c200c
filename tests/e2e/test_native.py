"""Our own client against the real server."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from firewall.client import AsyncClient, Client
from firewall.errors import InvalidInput, NotFound, NotReady, Unsupported
from firewall.screening.verdict import Verdict
from firewall.wire import firewall_pb2 as native
from tests.support.served import Served, call
from tests.support.tiny import forged, pixels, wire


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def client(server: Served) -> Client:
    return Client(server.address)


def test_rows_are_answered_one_by_one(client: Client) -> None:
    found = client.predict(np.concatenate([wire(1, 20), forged(1), wire(1, 21)]))
    assert [one.verdict for one in found] == [Verdict.ACCEPT, Verdict.REJECT, Verdict.ACCEPT]
    assert found[1].labels == ()
    assert "noise-floor" in found[1].reasons
    labels = found[0].labels
    assert len(labels) == 5
    assert [one.probability for one in labels] == sorted(
        (one.probability for one in labels), reverse=True
    )
    assert labels[0].name == f"class {labels[0].index}"


def test_no_score_leaves_the_service_unless_the_policy_says_so(client: Client) -> None:
    for one in client.predict(np.concatenate([wire(1, 20), forged(1)])):
        assert one.p_value is None
        assert one.statistics == {}


def test_an_encoded_image_is_the_tensor_it_shows(client: Client, tmp_path: Path) -> None:
    image = pixels(1, 20)[0]
    path = tmp_path / "image.png"
    path.write_bytes(png(image))
    tensor = np.ascontiguousarray(image.transpose(2, 0, 1)[None].astype(np.float32) / 255)
    by_tensor = client.predict(tensor, top_k=10)
    by_bytes = client.predict([png(image), path], top_k=10)
    for one in by_bytes:
        assert one.verdict is by_tensor[0].verdict
        assert [label.index for label in one.labels] == [
            label.index for label in by_tensor[0].labels
        ]


def test_screen_gives_verdicts_alone(client: Client) -> None:
    found = client.screen(np.concatenate([wire(1, 20), forged(1)]))
    assert [one.verdict for one in found] == [Verdict.ACCEPT, Verdict.REJECT]
    assert all(one.labels == () for one in found)


def test_describe(client: Client) -> None:
    found = client.describe()
    assert (found.model, found.version, found.classes) == ("tiny", "1", 10)
    assert list(found.shape) == [-1, 3, 32, 32]
    assert {stage.name: stage.tier for stage in found.stages}["noise-floor"] == "cheap"
    assert (found.mode, found.false_positive_rate) == ("enforce", 0.05)


def test_asyncio(server: Served) -> None:
    async def ask() -> list[Verdict]:
        async with AsyncClient(server.address) as client:
            answers = await asyncio.gather(
                *(client.predict(batch) for batch in (wire(1, 20), forged(1)))
            )
            screened = await client.screen(forged(1))
            assert (await client.describe()).model == "tiny"
            with pytest.raises(InvalidInput):
                await client.predict([])
            return [answer[0].verdict for answer in (*answers, screened)]

    assert asyncio.run(ask()) == [Verdict.ACCEPT, Verdict.REJECT, Verdict.REJECT]


def test_errors_have_their_classes(client: Client, server: Served, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"input\.tensor\.shape") as caught:
        client.predict(np.zeros((1, 3, 8, 8), np.float32))
    assert caught.value.field == "input.tensor.shape"
    with pytest.raises(NotFound, match="'other' is not served; served: tiny"):
        Client(server.address, model="other").predict(wire(1, 20))
    with pytest.raises(NotReady):
        Client("127.0.0.1:1", timeout=5).predict(wire(1, 20))
    with pytest.raises(InvalidInput, match=r"nothing\.png: No such file"):
        client.predict([tmp_path / "nothing.png"])
    with pytest.raises(InvalidInput, match="dtype int64"):
        client.predict(np.zeros((1, 3, 32, 32), np.int64))
    with pytest.raises(InvalidInput, match="expected a list"):
        client.predict("cat.png")


def test_certificates_are_not_pretended(client: Client) -> None:
    with pytest.raises(Unsupported, match="issues no certificates"):
        client.certify(wire(1, 20))


def test_a_request_id_is_the_callers_or_made(server: Served) -> None:
    method = "/firewall.v1.FirewallService/Screen"
    request = native.ScreenRequest(
        input=native.Input(
            tensor=native.Tensor(datatype="FP32", shape=[1, 3, 32, 32], data=forged(1).tobytes())
        )
    )

    def answered(**metadata: str) -> str:
        data = call(server.address, method, request.SerializeToString(), **metadata)
        return native.ScreenResponse.FromString(data).request_id

    made = answered()
    assert len(made) == 32
    assert answered(x_request_id="mine") == "mine"
    request.request_id = "body"
    assert answered(x_request_id="mine") == "body"
    ids = [event.get("request_id") for event in server.events()]
    assert {made, "mine", "body"} <= set(ids)
