"""A study with people: its plan, its format, and what answers mean."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from firewall.errors import ConfigError
from firewall.generate.human import (
    FIRST,
    LEAST,
    MOST,
    Answer,
    Mode,
    Study,
    analyse,
    next_exposure,
    plan,
    read_study,
)


def planned(folder: Path, mode: Mode, places: int = 3) -> Study:
    real = np.zeros((100, 1, 8, 8), np.uint8)
    real[:, 0, 0, 0] = np.arange(100)
    return plan(real, 255 - real, mode, folder, places=places, seed=1)


def answered(study: Study, place: int, right: float, name: str, seed: int = 0) -> list[Answer]:
    """Someone who is right with a probability."""
    rng = np.random.default_rng(seed)
    origin = {one.name: one.origin for one in study.pictures}
    exposure = FIRST if study.mode == "timed" else None
    found: list[Answer] = []
    for number, picture in enumerate(study.orders[place]):
        good = rng.random() < right
        other = {"real": "generated", "generated": "real"}[origin[picture]]
        found.append(
            Answer.model_validate(
                {
                    "participant": name, "place": place, "number": number, "picture": picture,
                    "exposure_ms": exposure, "answer": origin[picture] if good else other,
                    "response_ms": 700.0,
                }
            )
        )  # fmt: skip
        if exposure is not None:
            exposure = next_exposure(exposure, bool(good))
    return found


def write(folder: Path, answers: list[Answer]) -> None:
    lines = "".join(one.model_dump_json() + "\n" for one in answers)
    (folder / "answers.jsonl").write_text(lines)


def test_the_staircase_has_its_steps_and_its_ends() -> None:
    assert next_exposure(500, True) == 470
    assert next_exposure(500, False) == 510
    assert next_exposure(LEAST, True) == LEAST
    assert next_exposure(MOST, False) == MOST


@pytest.mark.parametrize(("mode", "count"), [("timed", 150), ("unlimited", 100)])
def test_a_plan(mode: Mode, count: int, tmp_path: Path) -> None:
    study = planned(tmp_path / "s", mode)
    origins = [one.origin for one in study.pictures]
    assert origins.count("real") == origins.count("generated") == count // 2
    assert len({one.sha256 for one in study.pictures}) == count
    assert all(sorted(order) == sorted(study.orders[0]) for order in study.orders)
    assert study.orders[0] != study.orders[1]
    # What lies in the folder does not betray where a picture is from.
    names = sorted(path.stem for path in (tmp_path / "s" / "images").iterdir())
    own = {one.name: one.origin for one in study.pictures}
    assert len({own[name] for name in names[: count // 4]}) == 2
    assert planned(tmp_path / "t", mode) == study


def test_people_who_see_through_everything_go_to_the_least_exposure(tmp_path: Path) -> None:
    study = planned(tmp_path / "s", "timed")
    sharp = [one for p in range(3) for one in answered(study, p, 1.0, f"sharp-{p}")]
    write(tmp_path / "s", sharp)
    found = analyse(*read_study(tmp_path / "s"))
    assert found.score == LEAST
    assert found.interval == (LEAST, LEAST)
    assert found.generated_as_real == found.real_as_generated == 0
    blind = [one for p in range(3) for one in answered(study, p, 0.2, f"blind-{p}", p)]
    write(tmp_path / "s", blind)
    assert analyse(*read_study(tmp_path / "s")).score > FIRST


def test_guesses_are_wrong_half_of_the_time_and_the_interval_says_how_surely(
    tmp_path: Path,
) -> None:
    study = planned(tmp_path / "s", "unlimited", places=12)
    answers = [one for p in range(12) for one in answered(study, p, 0.5, f"p{p}", p)]
    # One who went away.
    write(tmp_path / "s", answers[:-10])
    found = analyse(*read_study(tmp_path / "s"))
    assert found.participants == 11
    assert found.left_out == ("p11",)
    assert found.interval[0] < 0.5 < found.interval[1]
    assert found.interval[0] < found.score < found.interval[1]
    assert found.score == pytest.approx(
        (found.generated_as_real + found.real_as_generated) / 2, abs=1e-9
    )


def test_answers_to_something_else_are_refused_together(tmp_path: Path) -> None:
    study = planned(tmp_path / "s", "timed")
    one, two, three = (answered(study, place, 0.8, f"p{place}") for place in range(3))
    one[3] = one[3].model_copy(update={"exposure_ms": 999})
    two[2], two[3] = two[3], two[2]
    three[0] = three[0].model_copy(update={"place": 9})
    write(tmp_path / "s", [*one, *two, *three])
    with (tmp_path / "s" / "answers.jsonl").open("a") as file:
        file.write(json.dumps({"participant": "x"}) + "\n")
    with pytest.raises(ConfigError) as caught:
        read_study(tmp_path / "s")
    text = str(caught.value)
    assert "line 451: key 'place' is missing" in text
    assert "p0, answer 3: shown for 999 ms; the staircase has" in text
    assert "p1, answer 2: not the picture of place 1" in text
    assert "p2: place 9; the study has 3" in text


def test_a_study_without_answers_or_pictures_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_study(tmp_path)
    study = planned(tmp_path / "s", "unlimited")
    write(tmp_path / "s", answered(study, 0, 1.0, "p")[:5])
    with pytest.raises(ConfigError, match="none of 1 people answered to the end"):
        analyse(*read_study(tmp_path / "s"))
    few = np.zeros((10, 1, 8, 8), np.uint8)
    with pytest.raises(ConfigError, match="10 real images; a timed study takes 75"):
        plan(few, few, "timed", tmp_path / "t", places=1, seed=0)
