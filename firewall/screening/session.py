"""The only place that opens a session of onnxruntime for running.

Sessions on a processor share one arena, from which they take the memory between the layers of a
pass. It has a limit, so that a graph whose tensors grow with its input fails with an error instead
of taking all memory of the machine. Weights do not count; on CUDA there is no limit.
"""

from __future__ import annotations

import functools
import os
from typing import Any, Literal

import onnxruntime as ort

from firewall.cores import usable_cores
from firewall.errors import BundleMalformed, ConfigError

#: Where graphs run. `cuda` fails where onnxruntime cannot use it, instead of falling back.
Device = Literal["cpu", "cuda"]
#: Environment variable with the limit of the shared arena, in MiB.
WORKING_MEMORY = "FIREWALL_WORKING_MEMORY_MIB"
#: Its default: four tensors of the largest size that a graph may have.
WORKING_MEMORY_MIB = 2048
#: The default algorithm is a matrix product.
_EXACT = {"use_tf32": "0", "cudnn_conv_algo_search": "DEFAULT"}


def open_session(
    name: str, graph: bytes, threads: int, device: Device, *, exact: bool = False
) -> ort.InferenceSession:
    """Open a graph.

    Args:
        name: name of its file, for errors.
        graph: ONNX.
        threads: threads per inference (0 = one per core that the process may use).
        device: where to run.
        exact: forbids what interval bounds do not cover on CUDA: products of fewer bits than
            float32 has, and convolutions by Winograd or Fourier transforms.

    Raises:
        BundleMalformed: onnxruntime cannot load the graph.
        ConfigError: `device` is not available, or the limit of working memory is not a number.

    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or usable_cores()
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
    elif _share_arena():
        options.add_session_config_entry("session.use_env_allocators", "1")
    try:
        session = ort.InferenceSession(graph, options, providers=providers)
    except Exception as error:  # onnxruntime raises its own, undocumented classes
        raise BundleMalformed(f"{name}: onnxruntime cannot load this graph") from error
    if session.get_providers()[0] != wanted:
        raise ConfigError(f"device: {device!r} was asked for, and onnxruntime cannot use it here")
    # Kept by onnxruntime for a change of providers, which does not happen: as large as the weights.
    session._model_bytes = b""
    return session


@functools.cache
def _share_arena() -> bool:
    """Create the arena that the sessions of this process share; False where the program that
    embeds us has registered one already, which then decides about limits.
    """
    limit = _working_memory()
    where = ort.OrtMemoryInfo(
        "Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT
    )
    try:
        ort.create_and_register_allocator(where, ort.OrtArenaCfg({"max_mem": limit}))
    except Exception:  # onnxruntime raises its own, undocumented classes
        return False
    return True


def _working_memory() -> int:
    """Limit of the shared arena in bytes.

    Raises:
        ConfigError: the environment variable does not hold a positive number.

    """
    text = os.environ.get(WORKING_MEMORY, str(WORKING_MEMORY_MIB))
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 1 << 30:
        raise ConfigError(f"{WORKING_MEMORY}: {text!r}; expected a number of MiB, 1 or more")
    return int(text) << 20
