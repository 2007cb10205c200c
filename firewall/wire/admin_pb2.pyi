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
    __slots__ = ("model", "path")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    model: str
    path: str
    def __init__(self, model: _Optional[str] = ..., path: _Optional[str] = ...) -> None: ...

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
