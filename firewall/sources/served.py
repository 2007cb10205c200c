"""A classifier that is served elsewhere, by what its server says about it."""

from __future__ import annotations

from dataclasses import dataclass

from firewall.errors import ConfigError, FirewallError
from firewall.protocol.tensors import TensorInfo
from firewall.sources.onnx_graph import IMAGE_TYPES
from firewall.sources.options import SourceOptions
from firewall.upstream.client import Upstream
from firewall.upstream.settings import UpstreamSettings


@dataclass(frozen=True)
class ServedModel:
    """What a server says about a model.

    Attributes:
        input: the images.
        outputs: all of them; of what the owner says where the server says nothing.
        platform: that runs it, for people.

    """

    input: TensorInfo
    outputs: tuple[TensorInfo, ...]
    platform: str


def ask(settings: UpstreamSettings, options: SourceOptions) -> ServedModel:
    """Ask a server about its model, and complete what it does not say.

    Raises:
        ConfigError: the server does not answer, or the input is not known.

    """
    client = Upstream(settings, input_name="", output="")
    try:
        metadata = client.metadata()
        inputs, outputs, platform = metadata.inputs, metadata.outputs, metadata.platform
    except FirewallError as error:
        if options.input is None or options.output is None or options.shape is None:
            raise ConfigError(
                f"{settings.address} does not describe model {settings.model!r}: {error}. If it "
                "serves the model all the same, describe it with --input, --output and --shape"
            ) from error
        inputs, outputs, platform = (), (), ""
    finally:
        client.close()
    if options.input is not None:
        named = [one for one in inputs if one.name == options.input]
        if inputs and not named:
            names = ", ".join(repr(one.name) for one in inputs)
            raise ConfigError(
                f"--input: {options.input!r}; model {settings.model!r} has the inputs {names}"
            )
        inputs = tuple(named) or (TensorInfo(options.input, "FP32", ()),)
    if len(inputs) != 1:
        names = ", ".join(repr(one.name) for one in inputs) or "none"
        raise ConfigError(
            f"model {settings.model!r} has the inputs {names}; expected one, of images. Name it "
            "with --input"
        )
    if inputs[0].datatype not in IMAGE_TYPES:
        raise ConfigError(
            f"model {settings.model!r}: input {inputs[0].name!r} takes {inputs[0].datatype}; "
            f"expected {', '.join(IMAGE_TYPES)}"
        )
    if not outputs:
        if options.output is None:
            raise ConfigError(
                f"model {settings.model!r} names no outputs; name the one with the class scores "
                "with --output"
            )
        outputs = (TensorInfo(options.output, "FP32", ()),)
    return ServedModel(inputs[0], outputs, platform)
