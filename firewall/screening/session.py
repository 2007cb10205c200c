"""The only place that opens a session of onnxruntime."""

from __future__ import annotations

import functools
from typing import Any, Literal

import onnxruntime as ort

from firewall.errors import BundleMalformed, ConfigError

#: Where graphs run. `cuda` fails where onnxruntime cannot use it, instead of falling back.
Device = Literal["cpu", "cuda"]
#: The default algorithm is a matrix product.
_EXACT = {"use_tf32": "0", "cudnn_conv_algo_search": "DEFAULT"}


def open_session(
    name: str, graph: bytes, threads: int, device: Device, *, exact: bool = False
) -> ort.InferenceSession:
    """Open a graph.

    Args:
        name: of its file, for errors.
        graph: ONNX.
        threads: of one inference; 0 is one a core.
        device: where to run.
        exact: forbids what interval bounds do not cover on CUDA: products of fewer bits than
            float32 has, and convolutions by Winograd or Fourier transforms.

    Raises:
        BundleMalformed: onnxruntime cannot load the graph.
        ConfigError: `device` is not to be had.

    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Spinning threads take the cores that gRPC needs between two inferences.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # It would keep one block for each whole pass for ever.
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    wanted = "CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"
    if wanted not in ort.get_available_providers():
        raise ConfigError(f"device: {device!r} is not built into this onnxruntime; use 'cpu'")
    providers: list[Any] = ["CPUExecutionProvider"]
    if device == "cuda":
        providers.insert(0, (wanted, _EXACT if exact else {}))
    elif _one_arena():
        options.add_session_config_entry("session.use_env_allocators", "1")
    try:
        session = ort.InferenceSession(graph, options, providers=providers)
    except Exception as error:  # onnxruntime raises its own, undocumented classes
        raise BundleMalformed(f"{name}: onnxruntime cannot load this graph") from error
    if session.get_providers()[0] != wanted:
        raise ConfigError(f"device: {device!r} was asked for and onnxruntime cannot use it here")
    # Kept for a change of providers, which nobody asks for: as many bytes as the weights have.
    session._model_bytes = b""
    return session


@functools.cache
def _one_arena() -> bool:
    """Have the sessions of this process share what lies between the layers of a pass, of which each
    would otherwise keep its own; False where somebody else has decided about that.
    """
    where = ort.OrtMemoryInfo(
        "Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT
    )
    try:
        ort.create_and_register_allocator(where, ort.OrtArenaCfg({}))
    except Exception:
        return False
    return True
