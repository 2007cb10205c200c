from __future__ import annotations

from typing import Any, Literal, Self

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from firewall.validation import describe, problems


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")

    size: int = Field(default=1, gt=0)
    low: float = 0.0
    high: float = 1.0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError("low is above high")
        return self


class Document(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(default="name", min_length=3)
    parts: tuple[Part, ...] = ()
    rows: int | Literal["auto"] = "auto"
    limit: int | list[int] = 1
    either: Part | int = 1
    table: dict[str, int] = {}
    numbers: dict[int, str] = {}

    @model_validator(mode="after")
    def _named(self) -> Self:
        if self.name == "nobody":
            raise ValueError("Nobody may be named nobody")
        return self


class Needy(BaseModel):
    needed: int
    wanted: int


def caught(body: Any, model: type[BaseModel] = Document) -> ValidationError:
    with pytest.raises(ValidationError) as error:
        model.model_validate(body)
    return error.value


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"parts": [{}, {"size": -1}]}, "key 'parts[1].size' should be greater than 0, got -1"),
        ({"surprise": "x"}, "key 'surprise' is unknown, got 'x'"),
        ({"name": "a"}, "key 'name': string should have at least 3 characters, got 'a'"),
        ({"parts": [{"low": 2}]}, "key 'parts[0]': low is above high"),
        ({"name": "nobody"}, "Nobody may be named nobody"),
        (
            {"table": {"two words": "x"}},
            "key 'table.\"two words\"' should be a valid integer, got 'x'",
        ),
        ({"numbers": {"a": "x"}}, "key 'numbers.a' should be a valid integer, got 'a'"),
    ],
)
def test_a_sentence_names_key_problem_and_value(body: dict[str, Any], sentence: str) -> None:
    assert describe(caught(body)) == sentence


def test_a_document_of_another_type_has_no_key() -> None:
    assert describe(caught(3)).startswith("the document should be a valid dictionary")
    assert describe(caught(3)).endswith(", got 3")


def test_text_that_is_no_json_is_not_repeated() -> None:
    with pytest.raises(ValidationError) as error:
        Document.model_validate_json('{"secret": ')
    assert describe(error.value).startswith("invalid JSON: EOF")
    assert "secret" not in describe(error.value)


def test_a_missing_key_is_named_without_its_neighbours() -> None:
    assert problems(caught({"other": 1}, Needy)) == [
        "key 'needed' is missing",
        "key 'wanted' is missing",
    ]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"rows": "all"}, "key 'rows' should be a valid integer or should be 'auto', got 'all'"),
        # The value of the key, not the first element that a branch refused.
        ({"limit": ["many"]}, "key 'limit' should be a valid integer, got ['many']"),
        (
            {"either": {"size": 0}},
            "key 'either' should be greater than 0 or should be a valid integer, got {'size': 0}",
        ),
    ],
)
def test_the_branches_of_a_union_are_one_problem(body: dict[str, Any], sentence: str) -> None:
    assert problems(caught(body)) == [sentence]


def test_keys_that_look_like_branches_stay_keys() -> None:
    assert describe(caught({"table": {"int": None}})).startswith("key 'table.int' should be")


def test_problems_after_the_fifth_are_counted() -> None:
    error = caught({f"key-{number}": number for number in range(7)})
    assert len(problems(error)) == 7
    assert describe(error).count("is unknown") == 5
    assert describe(error).endswith("; and 2 more")


def test_a_hostile_document_gives_one_short_line() -> None:
    body = {"a\nb\x1b[31m" * 1000: "v\r\n" * 1000, "name": ["x" * 1000] * 1000}
    text = describe(caught(body))
    assert len(text) < 700
    assert text.isprintable()
