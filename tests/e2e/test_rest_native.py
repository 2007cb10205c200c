"""The native API over HTTP: a tensor, images in JSON, a form of curl's, or a file as the body."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from firewall.client import Client
from firewall.decoding.pixels import pixels_hash
from tests.support.command import command
from tests.support.image_files import encoded
from tests.support.rest import check_public
from tests.support.served import Served
from tests.support.tiny import forged, pixels, wire

PREDICT, SCREEN = "/firewall/v1/models/tiny:predict", "/firewall/v1/models/tiny:screen"
#: Of another size than the model's, and of its own size, which is taken pixel for pixel.
KINDS = {"jpeg": (64, 48, "JPEG"), "png": (32, 32, "PNG"), "webp": (50, 40, "WEBP")}


@pytest.fixture(scope="module")
def http(server: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.rest, timeout=20) as client:
        yield client


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images as files, of noise and one that is accepted."""
    place = tmp_path_factory.mktemp("images")
    for name, (width, height, kind) in KINDS.items():
        (place / f"noise.{name}").write_bytes(encoded(width, height, kind))
    Image.fromarray(pixels(1, 20)[0]).save(place / "clean.png")
    return place


def tensor(batch: np.ndarray) -> dict[str, Any]:
    return {"datatype": "FP32", "shape": list(batch.shape), "data": batch.ravel().tolist()}


def curl(*arguments: str) -> dict[str, Any]:
    """The JSON that curl receives."""
    program = shutil.which("curl")
    assert program, "curl is not installed"
    done = subprocess.run(
        [program, "--silent", "--show-error", "--max-time", "20", *arguments],
        capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def screened_offline(path: Path, bundle: Path, key: Path) -> str:
    """The hash that `firewall screen` prints."""
    done = command("screen", str(path), "--bundle", str(bundle), "--trust", str(key))
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["pixels_sha256"])


@pytest.mark.parametrize("nested", [False, True])
def test_predict_of_a_tensor(nested: bool, http: httpx.Client, server: Served) -> None:
    batch = np.concatenate([wire(1, 20), forged(1), wire(1, 21)])
    body = tensor(batch)
    if nested:
        body["data"] = batch.tolist()
    answer = http.post(PREDICT, json={"tensor": body, "request_id": "rest-1", "top_k": 3})
    check_public(answer)
    assert (answer.status_code, answer.headers["x-request-id"]) == (200, "rest-1")
    found = answer.json()
    assert {key: found[key] for key in ("model", "version", "request_id")} == {
        "model": "tiny", "version": "1", "request_id": "rest-1",
    }  # fmt: skip
    with Client(server.address) as client:
        expected = client.predict(batch, top_k=3)
    for row, prediction in zip(expected, found["predictions"], strict=True):
        assert prediction["decision"]["verdict"] == row.verdict.name
        assert prediction["decision"]["reasons"] == list(row.reasons)
        assert "diagnostics" not in prediction["decision"]
        # Index 0 is written as any other.
        assert [(label["index"], label["name"]) for label in prediction["labels"]] == [
            (label.index, label.name) for label in row.labels
        ]
        np.testing.assert_allclose(
            [label["probability"] for label in prediction["labels"]],
            [label.probability for label in row.labels],
            rtol=1e-4,
        )
    assert [one["decision"]["verdict"] for one in found["predictions"]] == [
        "ACCEPT", "REJECT", "ACCEPT",
    ]  # fmt: skip
    assert [len(one["labels"]) for one in found["predictions"]] == [3, 0, 3]


def test_class_0_has_its_index(http: httpx.Client) -> None:
    body = {"tensor": tensor(wire(1, 20)), "top_k": 10}
    [prediction] = http.post(PREDICT, json=body).json()["predictions"]
    assert {"index", "name", "probability"} == set(prediction["labels"][0])
    assert sorted(label["index"] for label in prediction["labels"]) == list(range(10))


def test_screen_of_a_tensor_has_no_pixels(http: httpx.Client) -> None:
    answer = http.post(SCREEN, json={"tensor": tensor(wire(1, 20)), "version": "1"}).json()
    assert [one["verdict"] for one in answer["decisions"]] == ["ACCEPT"]
    assert answer["screened"] == []


def test_images_as_base64(http: httpx.Client, folder: Path, server: Served) -> None:
    files = [folder / "clean.png", *(folder / f"noise.{name}" for name in KINDS)]
    images = [base64.b64encode(path.read_bytes()).decode() for path in files]
    with Client(server.address) as client:
        expected = client.predict(files)
    answer = http.post(PREDICT, json={"images": images}).json()
    assert [one["decision"]["verdict"] for one in answer["predictions"]] == [
        one.verdict.name for one in expected
    ]
    assert answer["predictions"][0]["decision"]["verdict"] == "ACCEPT"
    assert [len(one["labels"]) for one in answer["predictions"]] == [
        len(one.labels) for one in expected
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_hash_is_that_of_the_command(
    kind: str, folder: Path, server: Served, tiny_path: Path
) -> None:
    path, key = folder / f"noise.{kind}", server.audit.parent / "signer.pub"
    expected = screened_offline(path, tiny_path, key)
    form = curl("-F", f"image=@{path}", "-F", "pixels=true", f"{server.rest}{SCREEN}")
    [screened] = form["screened"]
    assert screened["sha256"] == expected
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(screened["png"]))))
    assert pixels_hash(shown) == expected
    body = curl(
        "-H", f"Content-Type: image/{kind}", "--data-binary", f"@{path}", f"{server.rest}{SCREEN}"
    )
    # Without its pixels, which nobody asked for.
    assert body["screened"] == [{"sha256": expected}]


def test_curl_with_a_file(folder: Path, server: Served) -> None:
    answer = curl(
        "-F", f"image=@{folder}/clean.png", "-F", "top_k=2", "-F", "request_id=curl-1",
        f"{server.rest}{PREDICT}",
    )  # fmt: skip
    [prediction] = answer["predictions"]
    assert prediction["decision"] == {"verdict": "ACCEPT", "reasons": []}
    assert len(prediction["labels"]) == 2
    assert answer["request_id"] == "curl-1"


def test_curl_with_several_files(folder: Path, server: Served) -> None:
    answer = curl(
        "-F", f"image=@{folder}/clean.png", "-F", f"image=@{folder}/noise.jpeg",
        "-F", f"another=@{folder}/clean.png", f"{server.rest}{PREDICT}",
    )  # fmt: skip
    verdicts = [one["decision"]["verdict"] for one in answer["predictions"]]
    assert len(verdicts) == 3
    assert verdicts[0] == verdicts[2] == "ACCEPT"


def test_curl_with_json(folder: Path, server: Served, tmp_path: Path) -> None:
    """`-d` says that it is a form of a web page; it is JSON all the same."""
    (tmp_path / "body.json").write_text(json.dumps({"tensor": tensor(wire(1, 20)), "top_k": 1}))
    answer = curl("-d", f"@{tmp_path}/body.json", f"{server.rest}{PREDICT}")
    assert len(answer["predictions"][0]["labels"]) == 1


def test_curl_with_a_large_file(server: Served, tmp_path: Path) -> None:
    """Over a kilobyte and over a buffer: curl asks whether to go on, and the file stays whole."""
    data = encoded(500, 500)
    assert len(data) > 512 << 10
    (tmp_path / "large.png").write_bytes(data)
    answer = curl("-F", f"image=@{tmp_path}/large.png", f"{server.rest}{SCREEN}")
    assert len(answer["screened"]) == 1
    assert not list(tmp_path.glob("tmp*"))


def test_request_id_is_the_servers_where_none_is_given(http: httpx.Client) -> None:
    answer = http.post(SCREEN, json={"tensor": tensor(wire(1, 20))})
    assert len(answer.json()["request_id"]) == 32
    assert answer.headers["x-request-id"] == answer.json()["request_id"]
