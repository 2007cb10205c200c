"""Hostile bundles: each way to be wrong has its error, and nothing of it is used."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from firewall.bundle.manifest import Manifest
from firewall.bundle.onnx_file import check_graph
from firewall.bundle.signing import CONTEXT, Signer, TrustedKeys, trusted_keys, user_signer, verify
from firewall.bundle.store import Bundle, open_bundle, write_bundle
from firewall.errors import (
    BundleAltered,
    BundleError,
    BundleMalformed,
    BundleMissing,
    BundleTooLarge,
    BundleUntrusted,
    BundleVersion,
    ConfigError,
)

FILES = (
    "MODEL_CARD.md", "calibration.json", "cheap.onnx", "evaluation.json", "expensive.onnx",
    "labels.json", "manifest.json", "selftest.npz", "signature.json",
)  # fmt: skip
Copy = Callable[[], Path]


def resign(path: Path, signer: Signer, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest and sign it anew: what a trusted but careless signer could do."""
    body = json.loads((path / "manifest.json").read_text())
    change(body)
    text = json.dumps(body).encode()
    (path / "manifest.json").write_bytes(text)
    (path / "signature.json").write_text(
        json.dumps(
            {
                "algorithm": "ed25519",
                "public_key": signer.public,
                "signature": signer.sign(text).hex(),
            }
        )
    )


def test_a_good_bundle_opens(tiny: Bundle, signer: Signer) -> None:
    assert tiny.signer == signer.public
    assert {*tiny.files, "manifest.json", "signature.json"} == set(FILES)
    assert tiny.labels[3] == "class 3"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("where", [0.0, 0.5, 1.0], ids=["first", "middle", "last"])
def test_one_flipped_bit_in_any_file_is_refused(
    name: str, where: float, tiny_copy: Copy, signer: Signer
) -> None:
    path = tiny_copy()
    data = bytearray((path / name).read_bytes())
    place = min(int(where * len(data)), len(data) - 1)
    if name == "signature.json" and where != 0.5:
        # The ends are a brace and a line break; the middle is hexadecimal digits that count.
        place = len(data) // 2 + int(where * 40)
    data[place] ^= 1
    (path / name).write_bytes(data)
    with pytest.raises(BundleError) as caught:
        open_bundle(path, {signer.public})
    assert name in str(caught.value) or "manifest.json" in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused_by_name(name: str, tiny_copy: Copy, signer: Signer) -> None:
    path = tiny_copy()
    (path / name).unlink()
    with pytest.raises(BundleAltered, match=f"{name}: missing"):
        open_bundle(path, {signer.public})


def test_an_extra_file_is_refused_by_name(tiny_copy: Copy, signer: Signer) -> None:
    path = tiny_copy()
    (path / "extra.bin").write_bytes(b"hello")
    with pytest.raises(BundleAltered, match=r"extra\.bin: not in the manifest"):
        open_bundle(path, {signer.public})


@pytest.mark.parametrize("name", [".hidden", "no_ending", "a b.txt"])
def test_a_strange_name_is_refused(name: str, tiny_copy: Copy, signer: Signer) -> None:
    path = tiny_copy()
    (path / name).write_bytes(b"")
    with pytest.raises(BundleAltered, match="not a name"):
        open_bundle(path, {signer.public})


def test_a_folder_and_a_link_are_refused(tiny_copy: Copy, signer: Signer) -> None:
    path = tiny_copy()
    (path / "folder.d").mkdir()
    with pytest.raises(BundleAltered, match=r"folder\.d: not a plain file"):
        open_bundle(path, {signer.public})
    path = tiny_copy()
    target = path.parent / "labels-elsewhere.json"
    shutil.move(path / "labels.json", target)
    os.symlink(target, path / "labels.json")
    with pytest.raises(BundleAltered, match=r"labels\.json: not a plain file"):
        open_bundle(path, {signer.public})


def test_an_unknown_signer_is_refused(tiny_path: Path) -> None:
    with pytest.raises(BundleUntrusted, match="not trusted"):
        open_bundle(tiny_path, {Signer.generate().public})
    with pytest.raises(BundleUntrusted, match="not trusted"):
        open_bundle(tiny_path, set())


def test_a_key_swapped_for_a_trusted_one_does_not_help(tiny_copy: Copy) -> None:
    path, other = tiny_copy(), Signer.generate()
    body = json.loads((path / "signature.json").read_text())
    (path / "signature.json").write_text(json.dumps(body | {"public_key": other.public}))
    with pytest.raises(BundleUntrusted, match="not that of key"):
        open_bundle(path, {other.public})


@pytest.mark.parametrize("name", ["../labels.json", "/etc/passwd", "a/b.json", "..", "a\\b.json"])
def test_a_path_in_the_manifest_leads_nowhere(name: str, tiny_copy: Copy, signer: Signer) -> None:
    path = tiny_copy()
    resign(path, signer, lambda body: body["files"].update({name: body["files"]["labels.json"]}))
    with pytest.raises(BundleMalformed, match="is not allowed"):
        open_bundle(path, {signer.public})


@pytest.mark.parametrize("version", [0, 2, "1", None, True, 1.5])
def test_an_unknown_version_is_refused(version: Any, tiny_copy: Copy, signer: Signer) -> None:
    path = tiny_copy()
    resign(path, signer, lambda body: body.update(schema_version=version))
    with pytest.raises(BundleVersion, match="is unknown; this program reads 1"):
        open_bundle(path, {signer.public})


def test_an_unknown_key_in_the_manifest_is_refused(tiny_copy: Copy, signer: Signer) -> None:
    path = tiny_copy()
    resign(path, signer, lambda body: body["input"].update(surprise=1))
    with pytest.raises(BundleMalformed, match=r"'input\.surprise'"):
        open_bundle(path, {signer.public})


def test_a_file_over_its_cap_is_refused_before_it_is_read(tiny_copy: Copy, signer: Signer) -> None:
    path = tiny_copy()
    with open(path / "manifest.json", "ab") as file:
        file.truncate(2 << 20)
    with pytest.raises(BundleTooLarge, match=r"manifest\.json: 2097152 bytes"):
        open_bundle(path, {signer.public})


def test_too_many_files_are_refused(tiny_copy: Copy, signer: Signer) -> None:
    path = tiny_copy()
    for number in range(80):
        (path / f"f{number}.txt").write_bytes(b"")
    with pytest.raises(BundleAltered, match="more than"):
        open_bundle(path, {signer.public})


def test_a_manifest_of_nested_brackets_is_refused(tiny_copy: Copy, signer: Signer) -> None:
    path = tiny_copy()
    text = b"[" * 200_000
    (path / "manifest.json").write_bytes(text)
    signature = {"algorithm": "ed25519", "public_key": signer.public}
    (path / "signature.json").write_text(
        json.dumps(signature | {"signature": signer.sign(text).hex()})
    )
    with pytest.raises(BundleMalformed, match="nested more than 32 levels"):
        open_bundle(path, {signer.public})


def test_there_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleMissing):
        open_bundle(tmp_path / "nothing", set())
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BundleMissing, match="a bundle is a directory"):
        open_bundle(tmp_path / "file", set())


def test_writing_is_whole_or_not_at_all(tiny: Bundle, tmp_path: Path, signer: Signer) -> None:
    target = tmp_path / "new"
    digest = write_bundle(target, tiny.manifest, tiny.files, signer)
    again = open_bundle(target, {signer.public})
    assert again.digest == digest
    assert again.files == tiny.files
    with pytest.raises(BundleError, match="exists already"):
        write_bundle(target, tiny.manifest, tiny.files, signer)
    with pytest.raises(BundleMalformed, match="not a name"):
        write_bundle(tmp_path / "bad", tiny.manifest, {"../x.json": b""}, signer)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_a_manifest_survives_json(tiny: Bundle) -> None:
    assert Manifest.from_json(tiny.manifest.to_json()) == tiny.manifest
    assert hashlib.sha256(tiny.manifest.to_json()).hexdigest() == tiny.digest


# --- signing ------------------------------------------------------------------------------------


def test_the_users_key_is_made_once_and_trusted(tmp_path: Path) -> None:
    first, second = user_signer(tmp_path), user_signer(tmp_path)
    assert first.public == second.public
    assert trusted_keys(directory=tmp_path) == TrustedKeys.of(first.public)
    assert (tmp_path / "signing.key").stat().st_mode & 0o777 == 0o600


def test_a_signature_is_for_manifests_alone() -> None:
    signer = Signer.generate()
    verify(signer.public, signer.sign(b"text"), b"text")
    with pytest.raises(BundleUntrusted):
        verify(signer.public, signer.key.sign(b"text"), b"text")
    assert CONTEXT.endswith(b"\0")


def test_a_file_that_is_no_key_is_named(tmp_path: Path) -> None:
    bad = tmp_path / "bad.pub"
    bad.write_text("hello")
    with pytest.raises(ConfigError, match=r"bad\.pub does not hold a public key"):
        trusted_keys([bad], directory=tmp_path)


def public_file(folder: Path, signer: Signer, name: str = "signer.pub") -> Path:
    path = folder / name
    path.write_text(signer.public + "\n")
    return path


@pytest.mark.parametrize("pattern", ["tiny", "t*", "tin?", "[st]iny", "*"])
def test_a_key_bound_to_a_name_opens_bundles_of_that_name(
    pattern: str, tiny_path: Path, tmp_path: Path, signer: Signer
) -> None:
    trusted = trusted_keys([f"{pattern}={public_file(tmp_path, signer)}"], directory=tmp_path)
    assert open_bundle(tiny_path, trusted).signer == signer.public


@pytest.mark.parametrize("pattern", ["other", "Tiny", "tiny-*"])
def test_a_key_bound_to_another_name_is_refused_with_key_and_names(
    pattern: str, tiny_path: Path, tmp_path: Path, signer: Signer
) -> None:
    trusted = trusted_keys([f"{pattern}={public_file(tmp_path, signer)}"], directory=tmp_path)
    with pytest.raises(BundleUntrusted) as caught:
        open_bundle(tiny_path, trusted)
    for word in (signer.public, f"named {pattern},", "not for 'tiny'"):
        assert word in str(caught.value)


def test_a_key_may_be_bound_to_several_names(
    tiny_path: Path, tmp_path: Path, signer: Signer
) -> None:
    path = public_file(tmp_path, signer)
    trusted = trusted_keys([f"other={path}", f"tiny={path}"], directory=tmp_path)
    assert trusted.patterns(signer.public) == ("other", "tiny")
    assert open_bundle(tiny_path, trusted).signer == signer.public


def test_a_path_with_an_equals_sign_is_a_path(tmp_path: Path, signer: Signer) -> None:
    path = public_file(tmp_path, signer, "a=b.pub")
    assert trusted_keys([path], directory=tmp_path) == TrustedKeys.of(signer.public)
    with pytest.raises(ConfigError, match=r"b\.pub cannot be read"):
        trusted_keys(["a=b.pub"], directory=tmp_path)


# --- graphs -------------------------------------------------------------------------------------


def graph(domain: str = "", external: bool = False, nested: bool = False) -> bytes:
    weight = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    if external:
        weight.ClearField("float_data")
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value="../../etc/passwd")
    if nested:
        node = helper.make_node("Constant", [], ["y"], value=weight)
        inner = helper.make_graph([node], "g", [], [])
        node = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
        outer = helper.make_graph([node], "g", [], [])
    else:
        node = helper.make_node("Add", ["x", "w"], ["y"], domain=domain)
        outer = helper.make_graph([node], "g", [], [], initializer=[weight])
    model: onnx.ModelProto = helper.make_model(outer)
    return model.SerializeToString()


def test_a_graph_that_holds_its_data_passes() -> None:
    check_graph("g.onnx", graph())


def test_a_graph_with_control_flow_is_refused() -> None:
    with pytest.raises(BundleMalformed, match="operator 'If' is control flow"):
        check_graph("g.onnx", graph(nested=True))


def test_data_outside_the_file_is_refused() -> None:
    with pytest.raises(BundleMalformed, match="keeps its data outside"):
        check_graph("g.onnx", graph(external=True))


def test_an_unknown_operator_domain_is_refused() -> None:
    with pytest.raises(BundleMalformed, match=r"domain 'evil\.ops'"):
        check_graph("g.onnx", graph(domain="evil.ops"))


def test_a_local_function_is_refused() -> None:
    """Its attributes may have defaults that lie outside the file."""
    model = onnx.load_from_string(graph())
    model.functions.add(name="f", domain="pkg.f")
    with pytest.raises(BundleMalformed, match="local functions"):
        check_graph("g.onnx", model.SerializeToString())


@pytest.mark.parametrize("data", [b"", b"hello", b"\xff" * 100])
def test_what_is_no_graph_is_refused(data: bytes) -> None:
    with pytest.raises(BundleMalformed):
        check_graph("g.onnx", data)


def test_a_signed_bundle_with_an_external_graph_is_refused(tiny_copy: Copy, signer: Signer) -> None:
    path, data = tiny_copy(), graph(external=True)
    (path / "cheap.onnx").write_bytes(data)
    entry = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    resign(path, signer, lambda body: body["files"].update({"cheap.onnx": entry}))
    with pytest.raises(BundleMalformed, match="keeps its data outside"):
        open_bundle(path, {signer.public})
