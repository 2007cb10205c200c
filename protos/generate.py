"""Generate `firewall/wire/*_pb2.py(i)` from the .proto files beside this script.

Usage: `python protos/generate.py [--out DIR]`. Needs grpcio-tools 1.76.0 (see pyproject: the
generated code must load with protobuf 6 and 7).

Messages are put into a descriptor pool of our own instead of the process-wide default pool:
`tritonclient`, `mlserver` and `kserve` register messages of the same full names there, and a
program that imports one of them beside `firewall.client` would otherwise fail.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from grpc_tools import protoc

HERE = Path(__file__).resolve().parent
SOURCES = (
    "firewall/v1/firewall.proto",
    "firewall/v1/admin.proto",
    "inference/open_inference.proto",
    "onnx/onnx_subset.proto",
)
POOL_IMPORT = "from firewall.wire.pool import POOL as _pool\n"


def generate(out: Path) -> list[Path]:
    """Write one module and one stub a .proto file into `out`; returns their paths."""
    out.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for source in SOURCES:
        path = HERE / source
        code = protoc.main(
            ["protoc", f"-I{path.parent}", f"--python_out={out}", f"--pyi_out={out}", str(path)]
        )
        if code != 0:
            raise SystemExit(f"protoc failed on {source} with code {code}")
        module = out / f"{path.stem}_pb2.py"
        text = module.read_text()
        text = text.replace("_descriptor_pool.Default()", "_pool")
        text = text.replace("# @@protoc_insertion_point(imports)\n", POOL_IMPORT, 1)
        module.write_text(text)
        written += [module, out / f"{path.stem}_pb2.pyi"]
    return written


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE.parent / "firewall" / "wire")
    for written_path in generate(parser.parse_args().out):
        print(written_path.name, file=sys.stderr)
