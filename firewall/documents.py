"""Parse TOML and JSON from files that may be hostile.

The parsers of the standard library recurse: a file of 100,000 brackets ends in a RecursionError.
A dotted TOML key nests without recursion, but `tomllib` keeps every prefix of it: a key of 100,000
parts (200 KB) takes 40 GB. Here each document has a size limit and a depth limit, and every problem
is an error of the caller's choice with one sentence for the user.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from firewall.errors import BundleMalformed, ConfigError, FirewallError

#: Levels of tables, arrays and objects within one another. Documents of this project use six.
MAX_DEPTH = 32
#: Bytes of a TOML document: policies, recipes, token files.
MAX_TOML = 1 << 20
#: Bytes of a JSON document; a calibration with a million statistics has about 20 MB.
MAX_JSON = 1 << 26

#: More than `MAX_DEPTH` parts of a dotted TOML key, bare or quoted. Repetitions are possessive, and
#: a match begins only where a part does, so that searching takes linear time. The pattern also
#: matches within strings, where nobody writes so many words with nothing but dots between.
_PART = r"""(?:[A-Za-z0-9_-]++|"(?:[^"\\\n]|\\.)*+"|'[^'\n]*+')"""
_LONG_KEY = re.compile(rf"(?<![A-Za-z0-9_-]){_PART}(?:[ \t]*+\.[ \t]*+{_PART}){{{MAX_DEPTH}}}")

#: Makes an error of its sentence; every subclass of FirewallError with the plain constructor does.
MakeError = Callable[[str], FirewallError]


def read_text(path: Path, what: str, *, error: MakeError = ConfigError) -> str:
    """Read a text file that a person wrote: UTF-8, with or without a byte order mark.

    Args:
        path: of the file.
        what: name of the file, with which the error begins.
        error: class of the error to raise.

    Raises:
        FirewallError: of the class `error`: it cannot be read, or is in another encoding.

    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as problem:
        raise error(f"{what}: {path} cannot be read: {problem.strerror}") from problem
    except UnicodeDecodeError as problem:
        raise error(
            f"{what}: {path} is not UTF-8 text (byte {problem.object[problem.start]:#04x} at "
            f"{problem.start}); save it as UTF-8"
        ) from problem


def parse_toml(
    text: str | bytes, what: str, *, error: MakeError = ConfigError, max_bytes: int = MAX_TOML
) -> dict[str, Any]:
    """Parse a TOML document.

    Args:
        text: the document; bytes must be UTF-8.
        what: name of the document, with which the error begins.
        error: class of the error to raise.
        max_bytes: size limit (of characters, where `text` is a string).

    Raises:
        FirewallError: of the class `error`: not TOML, too large, or nested too deeply.

    """
    _check_size(text, what, error, max_bytes)
    try:
        decoded = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        if _LONG_KEY.search(decoded):
            raise _too_deep(what, error)
        body = tomllib.loads(decoded)
    except RecursionError:
        raise _too_deep(what, error) from None
    except ValueError as problem:  # TOMLDecodeError and UnicodeDecodeError among them
        raise error(f"{what}: not TOML: {problem}") from problem
    _check_depth(body, what, error)
    return body


def parse_json(
    data: str | bytes, what: str, *, error: MakeError = BundleMalformed, max_bytes: int = MAX_JSON
) -> Any:
    """Parse a JSON document.

    Args:
        data: the document; bytes are UTF-8, UTF-16 or UTF-32.
        what: name of the document, with which the error begins.
        error: class of the error to raise.
        max_bytes: size limit (of characters, where `data` is a string).

    Raises:
        FirewallError: of the class `error`: not JSON, too large, or nested too deeply.

    """
    _check_size(data, what, error, max_bytes)
    try:
        body = json.loads(data)
    except RecursionError:
        raise _too_deep(what, error) from None
    except ValueError as problem:  # JSONDecodeError and UnicodeDecodeError among them
        raise error(f"{what}: not JSON: {problem}") from problem
    _check_depth(body, what, error)
    return body


def _check_size(data: str | bytes, what: str, error: MakeError, max_bytes: int) -> None:
    if len(data) > max_bytes:
        raise error(f"{what}: {len(data)} bytes, over the limit of {max_bytes}")


def _check_depth(body: Any, what: str, error: MakeError) -> None:
    # Level by level and without recursion. Leaves, of which a calibration has many, are skipped.
    level = [body] if isinstance(body, (dict, list)) else []
    for _ in range(MAX_DEPTH):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return
    raise _too_deep(what, error)


def _too_deep(what: str, error: MakeError) -> FirewallError:
    return error(f"{what}: nested more than {MAX_DEPTH} levels deep")
