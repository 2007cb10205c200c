"""A study with people: which pictures they see, in what order and for how long, and what it means.

HYPE (Zhou et al. 2019, arXiv:1904.01121) has two forms. *Timed*: each picture flashes up, shorter
after a right answer and longer after a wrong one; where a person's staircase stays is how long they
need to tell generated from real. *Unlimited*: 50 real and 50 generated pictures, as long as one
likes; half of the answers wrong is indistinguishable.

A study is a folder:

study.json     what is asked: mode, pictures with their origin, and an order for each place
images/*.png   the pictures
answers.jsonl  a line an answer, in the order in which they came
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError

from firewall.bundle.spec import Spec
from firewall.errors import ConfigError
from firewall.validation import describe

Mode = Literal["timed", "unlimited"]
Origin = Literal["real", "generated"]
FORMAT = "firewall-study/1"
#: Milliseconds of the staircase: where it begins, its steps, its ends.
FIRST, FASTER, SLOWER, LEAST, MOST = 500, 30, 10, 100, 1000
#: Pictures of a person: of a staircase, which needs time to settle, and without a limit.
TIMED, UNLIMITED = 150, 100
#: Resamplings of people for an interval.
_BOOTSTRAPS = 10_000
_LISTED = 5


class Picture(Spec):
    """One picture; its name tells nobody where it is from."""

    name: str = Field(pattern=r"^[0-9a-f]{16}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    origin: Origin


class Study(Spec):
    """`study.json`.

    Attributes:
        pictures: all of them, as many real as generated.
        orders: names of pictures for each place; who takes part takes a place.

    """

    format: Literal["firewall-study/1"] = "firewall-study/1"
    mode: Mode
    seed: int
    pictures: tuple[Picture, ...] = Field(min_length=2)
    orders: tuple[tuple[str, ...], ...] = Field(min_length=1)


class Answer(Spec):
    """A line of `answers.jsonl`."""

    #: A pseudonym; who it is stands nowhere.
    participant: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    place: Annotated[int, Field(ge=0)]
    #: From 0, in the order of the place.
    number: Annotated[int, Field(ge=0)]
    picture: str
    #: How long it was shown; None is without a limit.
    exposure_ms: Annotated[int, Field(ge=1)] | None
    answer: Origin
    #: From the picture's appearance to the answer.
    response_ms: Annotated[float, Field(ge=0)]


@dataclass(frozen=True)
class Finding:
    """What people said.

    Attributes:
        mode: of the study.
        participants: whose answers count.
        left_out: those who did not finish.
        score: timed, milliseconds: the mean over people of the exposure at which their staircase
            was most often; unlimited, the share of answers that are wrong: 0.5 is a guess.
        interval: 95 % of `score`, over resampled people.
        generated_as_real: share of generated pictures that were taken for real.
        real_as_generated: share of real ones that were not.

    """

    mode: Mode
    participants: int
    left_out: tuple[str, ...]
    score: float
    interval: tuple[float, float]
    generated_as_real: float
    real_as_generated: float


def next_exposure(exposure: int, right: bool) -> int:
    """Milliseconds of the next picture of a staircase."""
    return min(MOST, max(LEAST, exposure - FASTER if right else exposure + SLOWER))


def plan(
    real: npt.NDArray[np.uint8],
    generated: npt.NDArray[np.uint8],
    mode: Mode,
    folder: Path,
    *,
    places: int,
    seed: int,
) -> Study:
    """Draw pictures, mix them for each place, and write the folder.

    Args:
        real: [N, C, H, W], to draw from.
        generated: [M, C, H, W]; as they come, none picked by eye.
        mode: of the study.
        folder: new.
        places: people that can take part.
        seed: of every draw.

    Raises:
        ConfigError: there are too few images, or the folder cannot be written.

    """
    from PIL import Image

    each = (TIMED if mode == "timed" else UNLIMITED) // 2
    for name, one in (("real", real), ("generated", generated)):
        if len(one) < each:
            raise ConfigError(f"study: {len(one)} {name} images; a {mode} study takes {each}")
    rng = np.random.default_rng(seed)
    pictures: list[Picture] = []
    try:
        (folder / "images").mkdir(parents=True)
        for origin, one in (("real", real), ("generated", generated)):
            for number, row in enumerate(rng.permutation(len(one))[:each]):
                pixels = one[row].transpose(1, 2, 0)
                drawn = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
                name = hashlib.sha256(f"{seed} {origin} {number}".encode()).hexdigest()[:16]
                path = folder / "images" / f"{name}.png"
                drawn.save(path)
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                pictures.append(
                    Picture.model_validate({"name": name, "sha256": digest, "origin": origin})
                )
        names = sorted(one.name for one in pictures)
        orders = tuple(tuple(rng.permutation(names).tolist()) for _ in range(places))
        made = Study(mode=mode, seed=seed, pictures=tuple(pictures), orders=orders)
        (folder / "study.json").write_text(made.model_dump_json(indent=1), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"study: {folder} cannot be written: {error.strerror}") from error
    return made


def read_study(folder: Path) -> tuple[Study, list[Answer]]:
    """Read a study and its answers.

    Raises:
        ConfigError: a file cannot be read, or answers do not belong to this study; the error lists
            the first mistakes.

    """
    try:
        study = Study.model_validate_json((folder / "study.json").read_text(encoding="utf-8"))
        lines = (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"study: {error.filename} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise ConfigError(f"study: {folder / 'study.json'}: {describe(error)}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"study: {folder} holds a file that is not UTF-8 text") from error
    answers: list[Answer] = []
    problems: list[str] = []
    for number, line in enumerate(lines, 1):
        try:
            answers.append(Answer.model_validate_json(line))
        except ValidationError as error:
            problems.append(f"answers.jsonl, line {number}: {describe(error)}")
    problems += _mistakes(study, answers)
    if problems:
        more = f"; and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        raise ConfigError(f"study: {'; '.join(problems[:_LISTED])}{more}")
    return study, answers


def analyse(study: Study, answers: list[Answer], *, seed: int = 0) -> Finding:
    """What the answers say.

    Args:
        study: that was asked.
        answers: as `read_study` checked them.
        seed: of the resampling.

    Raises:
        ConfigError: nobody finished.

    """
    origin = {one.name: one.origin for one in study.pictures}
    by_person = _by_person(answers)
    length = {number: len(order) for number, order in enumerate(study.orders)}
    whole = {p: own for p, own in by_person.items() if len(own) == length[own[0].place]}
    if not whole:
        raise ConfigError(f"study: none of {len(by_person)} people answered to the end")
    scores = np.array(
        [
            _modal([one.exposure_ms or 0 for one in own])
            if study.mode == "timed"
            else np.mean([one.answer != origin[one.picture] for one in own])
            for own in whole.values()
        ]
    )
    rng = np.random.default_rng(seed)
    drawn = scores[rng.integers(0, len(scores), (_BOOTSTRAPS, len(scores)))].mean(axis=1)
    said: dict[Any, list[bool]] = {"real": [], "generated": []}
    for own in whole.values():
        for one in own:
            said[origin[one.picture]].append(one.answer != origin[one.picture])
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Finding(
        study.mode,
        len(whole),
        tuple(sorted(by_person.keys() - whole.keys())),
        float(scores.mean()),
        (float(low), float(high)),
        float(np.mean(said["generated"])),
        float(np.mean(said["real"])),
    )


def _by_person(answers: list[Answer]) -> dict[str, list[Answer]]:
    found: dict[str, list[Answer]] = {}
    for one in answers:
        found.setdefault(one.participant, []).append(one)
    return found


def _modal(exposures: list[int]) -> float:
    """The most frequent one; the mean of several that are."""
    values, counts = np.unique(exposures, return_counts=True)
    return float(values[counts == counts.max()].mean())


def _mistakes(study: Study, answers: list[Answer]) -> list[str]:
    """Answers to other pictures, in another order, or with other exposures than the staircase's."""
    origin = {one.name: one.origin for one in study.pictures}
    problems: list[str] = []
    for person, own in _by_person(answers).items():
        exposure: int | None = FIRST if study.mode == "timed" else None
        place = own[0].place
        if place >= len(study.orders):
            problems.append(f"{person}: place {place}; the study has {len(study.orders)}")
            continue
        order = study.orders[place]
        for number, one in enumerate(own):
            if (
                one.place != place
                or one.number != number
                or number >= len(order)
                or one.picture != order[number]
            ):
                problems.append(f"{person}, answer {number}: not the picture of place {place}")
                break
            if one.exposure_ms != exposure:
                problems.append(
                    f"{person}, answer {number}: shown for {one.exposure_ms} ms; "
                    + (f"the staircase has {exposure}" if exposure else "expected null")
                )
                break
            if exposure is not None:
                exposure = next_exposure(exposure, one.answer == origin[one.picture])
    return problems
