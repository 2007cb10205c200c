"""JSON bodies of the REST API: validated on the way in, and the source of the OpenAPI page."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Parameters = dict[str, Any]
Shape = Annotated[list[Annotated[int, Field(ge=0, le=2**31 - 1)]], Field(max_length=16)]


class Body(BaseModel):
    """Keys that this server does not know are ignored, as the protocol asks."""

    model_config = ConfigDict(strict=True, extra="ignore")


class RequestInput(Body):
    """An input tensor. Its data is in `data`, or after the JSON where `parameters` holds
    `binary_data_size`.
    """

    name: str
    shape: Shape
    datatype: str = Field(description="UINT8, FP16 or FP32; BYTES for encoded images.")
    parameters: Parameters | None = None
    data: list[Any] | None = Field(
        default=None, description="Row-major values, nested or flat; base64 text for BYTES."
    )


class RequestOutput(Body):
    """An output that is asked for."""

    name: str
    parameters: Parameters | None = Field(
        default=None,
        description="`classification`: how many labels to answer instead of the tensor; "
        "`binary_data`: whether to answer it after the JSON.",
    )


class InferenceRequest(Body):
    """An inference over the Open Inference Protocol."""

    id: str = ""
    parameters: Parameters | None = None
    inputs: list[RequestInput] = Field(max_length=64)
    outputs: list[RequestOutput] | None = Field(default=None, max_length=64)


class ResponseOutput(Body):
    """An output tensor."""

    name: str
    shape: list[int]
    datatype: str
    parameters: Parameters | None = None
    data: list[Any] | None = Field(
        default=None, description="Row-major and flat; null for values of a withheld row."
    )


class InferenceResponse(Body):
    """The answer to an inference."""

    model_name: str
    model_version: str
    id: str | None = None
    parameters: Parameters | None = Field(
        default=None, description="`firewall_verdict`: verdicts of all rows, comma-separated."
    )
    outputs: list[ResponseOutput]


class Error(Body):
    """Any answer that is not a success."""

    error: str
    request_id: str | None = None
    reason: str | None = Field(
        default=None, description="ADVERSARIAL_INPUT_SUSPECTED where rows were refused."
    )
    rows: list[int] | None = Field(default=None, description="The rows that were refused.")
    field: str | None = Field(default=None, description="The part of the request that is wrong.")


class Tensor(Body):
    """A dense tensor of a whole batch."""

    datatype: str
    shape: Shape
    data: list[Any] = Field(description="Row-major values, nested or flat.")


class NativeBody(Body):
    """A request of the native API: a tensor or encoded images."""

    version: str = ""
    request_id: str = ""
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    pixels: bool = False
    tensor: Tensor | None = None
    images: list[str] | None = Field(
        default=None, description="JPEG, PNG or WebP files as base64 text."
    )
