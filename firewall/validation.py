"""Turn pydantic's validation errors into sentences for a user who wrote the file."""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydantic import ValidationError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

Location = tuple[int | str, ...]

#: Problems that `describe` names before it only counts them.
_LISTED = 5
#: Characters of a key, a value or a message. Files may be hostile: a line stays a line.
_LONGEST = 60
_LONGEST_MESSAGE = 300
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]+")
#: pydantic's label of a branch of a union, such as `int` or `literal['auto']`, which stands in a
#: location as if it were a key.
_BRANCH = re.compile(
    r"none|bool|int|float|str|bytes|date|time|datetime|constrained-\w+|[\w-]+\[.+\]", re.DOTALL
)
#: Prefixes that pydantic puts before the text of a validator of ours.
_OURS = {"value_error": "Value error, ", "assertion_error": "Assertion failed, "}


def describe(error: ValidationError) -> str:
    """Name each key that is wrong, what is wrong with it, and the value given, in one line.

    Returns:
        For instance "key 'train.radius' should be greater than 0, got -0.1". Problems after the
        fifth are counted.

    """
    found = problems(error)
    more = [f"and {len(found) - _LISTED} more"] if len(found) > _LISTED else []
    return "; ".join([*found[:_LISTED], *more])


def problems(error: ValidationError) -> list[str]:
    """Describe each problem by itself, in the order of the keys; at least one.

    All branches of a union that refused a value are one problem.
    """
    details = error.errors(include_url=False)
    unions = _unions([one["loc"] for one in details])
    by_key: dict[Location, list[ErrorDetails]] = {}
    for one in details:
        location = one["loc"]
        prefixes = (location[:end] for end in range(len(location)))
        key = next((prefix for prefix in prefixes if prefix in unions), location)
        by_key.setdefault(key, []).append(one)
    return [_sentence(key, branches) for key, branches in by_key.items()]


def _unions(locations: Iterable[Location]) -> set[Location]:
    """Keys under which several branches of a union were tried.

    A key of a user's own may look like the label of a branch, but stands alone. Of a union of a
    model and a scalar one label is recognised; beside it stands the name of the model.
    """
    below: dict[Location, set[int | str]] = {}
    for location in locations:
        for end, part in enumerate(location):
            below.setdefault(location[:end], set()).add(part)
    return {
        key
        for key, parts in below.items()
        if len(parts) > 1
        and any(isinstance(part, str) and _BRANCH.fullmatch(part) for part in parts)
    }


def _sentence(key: Location, details: list[ErrorDetails]) -> str:
    # The shortest location holds the whole value, not a part of it.
    whole = min(details, key=lambda one: len(one["loc"]))
    messages = dict.fromkeys(_message(one) for one in details)
    path = _path(key)
    text = _cut(" or ".join(messages), _LONGEST_MESSAGE)
    if all(message.startswith(("should ", "is ")) for message in messages):
        text = f"key {path!r} {text}" if path else f"the document {text}"
    elif path:
        text = f"key {path!r}: {text}"
    return text + _given(whole)


def _message(detail: ErrorDetails) -> str:
    kind, text = detail["type"], detail["msg"]
    if kind == "missing":
        return "is missing"
    if kind == "extra_forbidden":
        return "is unknown"
    if kind in _OURS:
        text = text.removeprefix(_OURS[kind])
    elif kind.endswith("_parsing"):
        # "…, unable to parse string as an integer": the value that follows says so.
        text = text.removeprefix("Input ").partition(", unable to parse")[0]
    elif text.startswith("Input should "):
        text = text.removeprefix("Input ")
    elif text[1:2].islower():
        text = text[0].lower() + text[1:]
    return " ".join(text.split())


def _given(detail: ErrorDetails) -> str:
    kind, value = detail["type"], detail["input"]
    scalar = value is None or isinstance(value, (str, bytes, int, float))
    # Not the parent of a missing key, the text that is no JSON, or all that a validator looked at.
    if kind in ("missing", "json_invalid") or (kind in _OURS and not scalar):
        return ""
    shortener = reprlib.Repr()
    shortener.maxstring = shortener.maxother = shortener.maxlong = _LONGEST
    shortener.maxlevel = 2
    return f", got {shortener.repr(value)}"


def _path(location: Location) -> str:
    """Write a location as in TOML: `stages[0].config."two words"`."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part != "[key]":  # pydantic's mark for an error in the key itself
            plain = _PLAIN_KEY.fullmatch(part)
            path += "." + _cut(
                part if plain else json.dumps(part, ensure_ascii=False, allow_nan=False), _LONGEST
            )
    return path.removeprefix(".")


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"
