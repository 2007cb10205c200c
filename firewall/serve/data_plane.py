"""What the server can do, without any protocol: gRPC and REST call these methods alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from firewall.bundle.manifest import Manifest
from firewall.decoding.pixels import pixels_hash
from firewall.decoding.pool import DecodingPool
from firewall.errors import InvalidInput, Refused
from firewall.protocol.tensors import DATATYPES
from firewall.screening.preprocess import check_values, to_wire
from firewall.screening.span import Span
from firewall.screening.verdict import Answer, Decision, Verdict
from firewall.serve.context import RequestContext
from firewall.serve.model import Certified, ServedModel
from firewall.serve.repository import ModelRepository
from firewall.serve.statistics import Statistics
from firewall.serve.tensors import Batch, EncodedImages, Limits, check_row_count, to_rows

#: The protocol's name of each numpy datatype.
_DATATYPES = {numpy_name: name for name, numpy_name in DATATYPES.items()}


@dataclass(frozen=True)
class NamedInput:
    """An input tensor of an inference request: its name, and its batch."""

    name: str
    batch: Batch


@dataclass(frozen=True)
class RequestedOutput:
    """An output that is asked for; `classification` > 0 asks for that many labels instead."""

    name: str
    classification: int = 0


@dataclass(frozen=True)
class InferRequest:
    """An inference over the Open Inference Protocol."""

    model: str
    version: str
    id: str
    input: NamedInput
    outputs: Sequence[RequestedOutput] = ()


@dataclass(frozen=True)
class InferOutput:
    """An output tensor: numbers [N, ...] as an array, or BYTES [N, k] as elements."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: npt.NDArray[Any] | None = None
    elements: Sequence[bytes] = ()


@dataclass(frozen=True)
class InferResult:
    """The answer to an inference."""

    model: str
    version: str
    id: str
    outputs: Sequence[InferOutput]
    parameters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class NativeRequest:
    """A request of the native API. An empty model means the only one served."""

    model: str
    version: str
    request_id: str
    batch: Batch


@dataclass(frozen=True)
class Screened:
    """Decisions and outputs of a native request.

    Attributes:
        model: name.
        version: of the bundle.
        answer: to every row.
        labels: names of the classes.
        disclose: whether the policy lets statistics and p-values out.
        pixels: [N, H, W, C] uint8 that were screened, of encoded images; None of tensors.
        hashes: of these pixels, by row.

    """

    model: str
    version: str
    answer: Answer
    labels: Sequence[str]
    disclose: bool
    pixels: npt.NDArray[np.uint8] | None = None
    hashes: Sequence[str] = ()


@dataclass(frozen=True)
class ModelDescription:
    """What is served under a name, and whether it is ready."""

    manifest: Manifest
    ready: bool
    max_rows: int
    statistics: Statistics


class DataPlane:
    """Leases a model, turns the request's batch into rows, and has them screened."""

    def __init__(
        self,
        repository: ModelRepository,
        limits: Limits,
        decoding: DecodingPool,
        pad_latency: float = 0.0,
    ) -> None:
        """Set what all requests share.

        Args:
            repository: the models.
            limits: of one request.
            decoding: decodes images.
            pad_latency: seconds that screening takes at least, so that time does not tell which
                tier has run.

        """
        self._repository = repository
        self._limits = limits
        self._decoding = decoding
        self._pad_latency = pad_latency

    @property
    def ready(self) -> bool:
        """Whether every model is ready."""
        return self._repository.ready

    @property
    def limits(self) -> Limits:
        """What one request may hold."""
        return self._limits

    def infer(self, request: InferRequest, context: RequestContext) -> InferResult:
        """Screen a batch and answer it in the classifier's own terms.

        Raises:
            Refused: a row is suspected, unless the policy withholds single rows.
            FirewallError: as `ServedModel.answer`, or a malformed request.

        """
        with self._repository.lease(request.model, request.version) as model:
            rows, body = self._infer_rows(request, model, context)
            answer = self._answer(model, rows, context, body)
            return _infer_result(request, model, answer, context.request_id)

    def infer_later(
        self,
        request: InferRequest,
        context: RequestContext,
        on_done: Callable[[InferResult | Exception], None],
    ) -> bool:
        """Do as `infer` does without waiting, where nothing of the request takes long.

        Args:
            request: as in `infer`.
            context: of the request.
            on_done: called from another thread with the result, or with what `infer` would raise.

        Returns:
            False where the request may take long (images to decode, a store to ask, a padded
            latency): nothing has been done then, and `infer` has to be asked.

        Raises:
            FirewallError: as `infer`, for what is known at once.

        """
        lease = self._repository.lease(request.model, request.version)
        model = lease.__enter__()
        try:
            if (
                isinstance(request.input.batch, EncodedImages)
                or self._pad_latency
                or not model.answers_at_once
            ):
                lease.__exit__()
                return False
            rows, body = self._infer_rows(request, model, context)

            def finish(outcome: Answer | Exception) -> None:
                lease.__exit__()
                try:
                    if isinstance(outcome, Exception):
                        raise outcome
                    on_done(_infer_result(request, model, outcome, context.request_id))
                except Exception as error:
                    on_done(error)

            model.answer_later(rows, context, body, finish)
        except BaseException:
            lease.__exit__()
            raise
        return True

    def _infer_rows(
        self, request: InferRequest, model: ServedModel, context: RequestContext
    ) -> tuple[npt.NDArray[Any], str]:
        """Check an inference request; returns its rows, and the field with unchecked values."""
        context.set_request_id("id", request.id)
        manifest = model.manifest
        if request.input.name != manifest.input.name:
            raise InvalidInput(
                "inputs[0].name",
                f"{request.input.name[:64]!r}; expected {manifest.input.name!r}",
            )
        for number, output in enumerate(request.outputs):
            _check_output(f"outputs[{number}]", output, manifest)
        rows, body, _ = self._rows(request.input.batch, model, context)
        return rows, body

    def predict(self, request: NativeRequest, top_k: int, context: RequestContext) -> Screened:
        """Screen every row; the answer has labels for those that are not refused."""
        context.set_request_id("request_id", request.request_id)
        with self._repository.lease(request.model, request.version, default=True) as model:
            classes = model.manifest.classifier.classes
            if top_k > classes:
                raise InvalidInput("top_k", f"{top_k}; expected at most {classes}")
            return self._screened(request, model, context)

    def screen(self, request: NativeRequest, context: RequestContext) -> Screened:
        """Screen every row, and hash the pixels of encoded images as they were screened."""
        context.set_request_id("request_id", request.request_id)
        with self._repository.lease(request.model, request.version, default=True) as model:
            return self._screened(request, model, context, with_pixels=True)

    def certify(
        self, request: NativeRequest, context: RequestContext
    ) -> tuple[Certified, ServedModel]:
        """Certify every row that is not refused; also returns the model that did."""
        context.set_request_id("request_id", request.request_id)
        with self._repository.lease(request.model, request.version, default=True) as model:
            model.check_certifies()
            rows, body, _ = self._rows(request.batch, model, context)
            check_values(rows, model.manifest.input, body)
            return model.certify(rows, context), model

    def live(self, model: str, version: str = "") -> ServedModel:
        """The live model of a name, for what does not compute."""
        with self._repository.lease(model, version, default=True) as found:
            return found

    def describe(self, model: str, version: str = "") -> ModelDescription:
        """Describe one model.

        Raises:
            NotFound: no such name or version.

        """
        with self._repository.lease(model, version) as found:
            return self._description(found)

    def describe_all(self) -> list[ModelDescription]:
        """Describe every model."""
        return [self._description(entry.live) for entry in self._repository]

    def _description(self, model: ServedModel) -> ModelDescription:
        return ModelDescription(
            model.manifest, model.ready, self._limits.rows, model.statistics.read()
        )

    def _screened(
        self,
        request: NativeRequest,
        model: ServedModel,
        context: RequestContext,
        *,
        with_pixels: bool = False,
    ) -> Screened:
        rows, body, pixels = self._rows(request.batch, model, context)
        answer = self._answer(model, rows, context, body)
        hashed = pixels if with_pixels else None
        return Screened(
            model.name,
            model.manifest.version,
            answer,
            model.labels,
            model.guard.policy.disclose == "diagnostics",
            hashed,
            () if hashed is None else [pixels_hash(row) for row in hashed],
        )

    def _answer(
        self, model: ServedModel, rows: npt.NDArray[Any], context: RequestContext, body: str
    ) -> Answer:
        """Have rows screened, which takes `pad_latency` at least."""
        start = time.monotonic()
        answer = model.answer(rows, context, unchecked=body)
        pause = start + self._pad_latency - time.monotonic()
        if pause > 0:
            time.sleep(pause)
        return answer

    def _rows(
        self, batch: Batch, model: ServedModel, context: RequestContext
    ) -> tuple[npt.NDArray[Any], str, npt.NDArray[np.uint8] | None]:
        """Rows of a batch, the name of the field that holds unchecked values, and the pixels of
        encoded images.
        """
        start = time.perf_counter()
        spec = model.manifest.input
        if isinstance(batch, EncodedImages):
            check_row_count(batch.field, len(batch.images), self._limits)
            pixels = self._decoding.decode(
                batch.images,
                spec,
                model.manifest.preprocessing,
                field=batch.field,
                deadline=context.deadline,
                check=context.check,
            )
            rows, body = to_wire(pixels, spec), ""
            model.decoded(time.perf_counter() - start)
        else:
            pixels = None
            rows, body = to_rows(batch, spec, self._limits), batch.body
        context.spans.append(Span("decode", start, time.perf_counter()))
        return rows, body, pixels


def _check_output(field: str, output: RequestedOutput, manifest: Manifest) -> None:
    others = {one.name for one in manifest.other_outputs}
    if output.name not in {manifest.output, *others}:
        expected = ", ".join(repr(name) for name in (manifest.output, *sorted(others)))
        raise InvalidInput(f"{field}.name", f"{output.name[:64]!r}; expected {expected}")
    if output.classification and output.name in others:
        raise InvalidInput(
            f"{field}.parameters['classification']", f"is for the output {manifest.output!r}"
        )
    classes = manifest.classifier.classes
    if not 0 <= output.classification <= classes:
        raise InvalidInput(
            f"{field}.parameters['classification']",
            f"{output.classification}; expected 1 to {classes}",
        )


def _infer_result(
    request: InferRequest, model: ServedModel, answer: Answer, request_id: str
) -> InferResult:
    policy = model.guard.policy
    refused = tuple(
        row for row, decision in enumerate(answer.decisions) if decision.verdict is Verdict.REJECT
    )
    if refused:
        if policy.rows == "all":
            raise Refused(_refusal(refused, request_id), request_id, refused)
        answer = _withheld(answer, refused)
    parameters: dict[str, str] = {}
    if policy.mode == "monitor" or policy.rows == "each":
        parameters = verdict_parameters(answer.decisions, disclose=policy.disclose == "diagnostics")
    asked = request.outputs or [
        RequestedOutput(name) for name in (model.manifest.output, *answer.others)
    ]
    return InferResult(
        model.name,
        model.manifest.version,
        request.id,
        [_output(n, output, answer, model) for n, output in enumerate(asked)],
        parameters,
    )


def _withheld(answer: Answer, refused: Sequence[int]) -> Answer:
    """Replace what is answered of refused rows by NaN, and by 0 where a number cannot be NaN."""

    def without(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        values = values.copy()
        values[list(refused)] = np.nan if values.dtype.kind == "f" else 0
        return values

    return replace(
        answer,
        outputs=without(answer.outputs),
        logits=without(answer.logits),
        others={name: without(values) for name, values in answer.others.items()},
    )


def _output(
    number: int, output: RequestedOutput, answer: Answer, model: ServedModel
) -> InferOutput:
    own = output.name == model.manifest.output
    if not own and output.name not in answer.others:
        raise InvalidInput(
            f"outputs[{number}].name",
            f"{output.name[:64]!r} is withheld by the policy; expected {model.manifest.output!r}",
        )
    values = answer.outputs if own else answer.others[output.name]
    if not output.classification:
        return InferOutput(output.name, _DATATYPES[values.dtype.name], values.shape, values)
    top, labels = output.classification, model.labels
    flat = values.reshape(len(values), -1)
    if flat.shape[1] != len(labels):
        # One value for two classes: the probability of each.
        flat = np.exp(answer.log_probabilities)
    elements = [element for row in flat for element in classification(row, labels, top)]
    return InferOutput(output.name, "BYTES", (len(values), top), None, elements)


def classification(row: npt.NDArray[Any], labels: Sequence[str], top: int) -> list[bytes]:
    """The classes of a row as Triton's classification extension writes them: `value:index:label`.

    A withheld row has `nan:-1:` in every place.
    """
    if np.isnan(row).all():
        return [b"nan:-1:"] * top
    order = np.argsort(-row, kind="stable")[:top]
    return [f"{row[index]:f}:{index}:{labels[index]}".encode() for index in order]


def verdict_parameters(decisions: Sequence[Decision], *, disclose: bool) -> dict[str, str]:
    """Verdicts of all rows as response parameters, which hold scalars alone: comma-separated."""
    parameters = {"firewall_verdict": ",".join(decision.verdict.value for decision in decisions)}
    if disclose:
        parameters["firewall_p_value"] = ",".join(
            "" if decision.p_value is None else f"{decision.p_value:.6g}" for decision in decisions
        )
    return parameters


def _refusal(rows: tuple[int, ...], request_id: str) -> str:
    # Status text travels in headers, which are small: not all of thousands of rows.
    listed = ", ".join(str(row) for row in rows[:32])
    if len(rows) > 32:
        listed += f" and {len(rows) - 32} more"
    plural = "s" if len(rows) > 1 else ""
    return f"suspected adversarial input in row{plural} {listed}; request id {request_id}"


def check_classification(field: str, top: int) -> None:
    """Refuse to answer no label at all.

    Raises:
        InvalidInput: `top`, the number of labels that is asked for, is below 1.

    """
    if top < 1:
        raise InvalidInput(f"{field}.parameters['classification']", f"{top}; expected at least 1")


def check_shared_memory(field: str, parameters: Iterable[str]) -> None:
    """Refuse tensors that are not in the message.

    Raises:
        InvalidInput: a parameter names Triton's shared memory.

    """
    for key in parameters:
        if key.startswith("shared_memory_"):
            raise InvalidInput(
                f"{field}.parameters[{key[:64]!r}]",
                "shared memory is not served; send the tensor in the message",
            )
