from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[ModelStatus]
    def __init__(self, models: _Optional[_Iterable[_Union[ModelStatus, _Mapping]]] = ...) -> None: ...

class ModelStatus(_message.Message):
    __slots__ = ("model", "version", "bundle", "path", "policy", "mode", "false_positive_rate", "ready", "before", "shadow", "changed")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    FALSE_POSITIVE_RATE_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    SHADOW_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    bundle: str
    path: str
    policy: str
    mode: str
    false_positive_rate: float
    ready: bool
    before: Change
    shadow: ShadowStatus
    changed: bool
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., bundle: _Optional[str] = ..., path: _Optional[str] = ..., policy: _Optional[str] = ..., mode: _Optional[str] = ..., false_positive_rate: _Optional[float] = ..., ready: bool = ..., before: _Optional[_Union[Change, _Mapping]] = ..., shadow: _Optional[_Union[ShadowStatus, _Mapping]] = ..., changed: bool = ...) -> None: ...

class Change(_message.Message):
    __slots__ = ("version", "bundle", "policy")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    version: str
    bundle: str
    policy: str
    def __init__(self, version: _Optional[str] = ..., bundle: _Optional[str] = ..., policy: _Optional[str] = ...) -> None: ...

class ShadowStatus(_message.Message):
    __slots__ = ("version", "bundle", "percent", "rows", "verdicts_differ", "labels_differ", "would_refuse", "dropped", "failed")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    PERCENT_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    VERDICTS_DIFFER_FIELD_NUMBER: _ClassVar[int]
    LABELS_DIFFER_FIELD_NUMBER: _ClassVar[int]
    WOULD_REFUSE_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    version: str
    bundle: str
    percent: float
    rows: int
    verdicts_differ: int
    labels_differ: int
    would_refuse: int
    dropped: int
    failed: int
    def __init__(self, version: _Optional[str] = ..., bundle: _Optional[str] = ..., percent: _Optional[float] = ..., rows: _Optional[int] = ..., verdicts_differ: _Optional[int] = ..., labels_differ: _Optional[int] = ..., would_refuse: _Optional[int] = ..., dropped: _Optional[int] = ..., failed: _Optional[int] = ...) -> None: ...

class ReloadRequest(_message.Message):
    __slots__ = ("model", "path", "allow_downgrade")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    ALLOW_DOWNGRADE_FIELD_NUMBER: _ClassVar[int]
    model: str
    path: str
    allow_downgrade: bool
    def __init__(self, model: _Optional[str] = ..., path: _Optional[str] = ..., allow_downgrade: bool = ...) -> None: ...

class RollbackRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class SetPolicyRequest(_message.Message):
    __slots__ = ("model", "toml")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TOML_FIELD_NUMBER: _ClassVar[int]
    model: str
    toml: str
    def __init__(self, model: _Optional[str] = ..., toml: _Optional[str] = ...) -> None: ...

class StartShadowRequest(_message.Message):
    __slots__ = ("model", "path", "percent")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    PERCENT_FIELD_NUMBER: _ClassVar[int]
    model: str
    path: str
    percent: float
    def __init__(self, model: _Optional[str] = ..., path: _Optional[str] = ..., percent: _Optional[float] = ...) -> None: ...

class PromoteShadowRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class DropShadowRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class ListQuarantineRequest(_message.Message):
    __slots__ = ("model", "client", "reviewed", "limit", "before")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    REVIEWED_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    model: str
    client: str
    reviewed: bool
    limit: int
    before: int
    def __init__(self, model: _Optional[str] = ..., client: _Optional[str] = ..., reviewed: bool = ..., limit: _Optional[int] = ..., before: _Optional[int] = ...) -> None: ...

class ListQuarantineResponse(_message.Message):
    __slots__ = ("rows",)
    ROWS_FIELD_NUMBER: _ClassVar[int]
    rows: _containers.RepeatedCompositeFieldContainer[QuarantinedRow]
    def __init__(self, rows: _Optional[_Iterable[_Union[QuarantinedRow, _Mapping]]] = ...) -> None: ...

class GetQuarantinedRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: int
    def __init__(self, id: _Optional[int] = ...) -> None: ...

class LabelQuarantinedRequest(_message.Message):
    __slots__ = ("id", "label")
    ID_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    id: int
    label: str
    def __init__(self, id: _Optional[int] = ..., label: _Optional[str] = ...) -> None: ...

class ForgetClientRequest(_message.Message):
    __slots__ = ("client",)
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    client: str
    def __init__(self, client: _Optional[str] = ...) -> None: ...

class ForgetClientResponse(_message.Message):
    __slots__ = ("rows",)
    ROWS_FIELD_NUMBER: _ClassVar[int]
    rows: int
    def __init__(self, rows: _Optional[int] = ...) -> None: ...

class QuarantinedRow(_message.Message):
    __slots__ = ("id", "created", "request_id", "row", "client", "model", "version", "bundle", "policy", "verdict", "reasons", "statistics", "p_value", "said", "label", "reviewer", "reviewed", "sampled", "png")
    class StatisticsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ROW_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    STATISTICS_FIELD_NUMBER: _ClassVar[int]
    P_VALUE_FIELD_NUMBER: _ClassVar[int]
    SAID_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    REVIEWER_FIELD_NUMBER: _ClassVar[int]
    REVIEWED_FIELD_NUMBER: _ClassVar[int]
    SAMPLED_FIELD_NUMBER: _ClassVar[int]
    PNG_FIELD_NUMBER: _ClassVar[int]
    id: int
    created: str
    request_id: str
    row: int
    client: str
    model: str
    version: str
    bundle: str
    policy: str
    verdict: str
    reasons: _containers.RepeatedScalarFieldContainer[str]
    statistics: _containers.ScalarMap[str, float]
    p_value: float
    said: int
    label: str
    reviewer: str
    reviewed: str
    sampled: bool
    png: bytes
    def __init__(self, id: _Optional[int] = ..., created: _Optional[str] = ..., request_id: _Optional[str] = ..., row: _Optional[int] = ..., client: _Optional[str] = ..., model: _Optional[str] = ..., version: _Optional[str] = ..., bundle: _Optional[str] = ..., policy: _Optional[str] = ..., verdict: _Optional[str] = ..., reasons: _Optional[_Iterable[str]] = ..., statistics: _Optional[_Mapping[str, float]] = ..., p_value: _Optional[float] = ..., said: _Optional[int] = ..., label: _Optional[str] = ..., reviewer: _Optional[str] = ..., reviewed: _Optional[str] = ..., sampled: bool = ..., png: _Optional[bytes] = ...) -> None: ...
