"""Accept a cat, forge it into an iguana, refuse it: over gRPC, on a real ImageNet classifier."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firewall.bundle.signing import trusted_keys
from firewall.bundle.store import open_bundle
from firewall.client import Client, Prediction
from firewall.decoding.decode import decode_image
from firewall.demo.forge import IGUANA, classify, forge, jpeg, png
from firewall.demo.picture import GAIN, Caption, draw
from firewall.demo.server import running
from firewall.screening.verdict import Verdict
from firewall.train.efficientnet import EfficientNetLite
from firewall.train.photographs import cat


@dataclass(frozen=True)
class Story:
    """How the demo went."""

    clean: Prediction
    bare_clean_label: str
    bare_clean_probability: float
    bare_label: str
    bare_probability: float
    forged: Prediction
    forged_jpeg: Prediction
    monitored: Prediction
    picture: Path
    seconds: float
    fooled: bool

    @property
    def as_expected(self) -> bool:
        """Whether the cat passed, the bare classifier fell, and the guard held."""
        return (
            self.clean.verdict is Verdict.ACCEPT
            and self.fooled
            and self.forged.verdict is Verdict.REJECT
            and self.jpeg_held
            and self.monitored.verdict is Verdict.FLAG
        )

    @property
    def jpeg_held(self) -> bool:
        """Whether the saved forgery is refused, or is answered and is no forgery any more."""
        labels = self.forged_jpeg.labels
        return self.forged_jpeg.verdict is Verdict.REJECT or (
            bool(labels) and labels[0].index != IGUANA
        )

    def to_json(self) -> dict[str, Any]:
        """The object that `firewall demo --json` prints."""
        top = self.clean.labels[0] if self.clean.labels else None
        return {
            "clean": {
                "label": top.name if top else None,
                "probability": top.probability if top else None,
                "verdict": self.clean.verdict.value,
            },
            "forged": {
                "bare_label": self.bare_label,
                "bare_probability": self.bare_probability,
                "verdict": self.forged.verdict.value,
                "reasons": list(self.forged.reasons),
            },
            "forged_jpeg": {
                "label": self.forged_jpeg.labels[0].name if self.forged_jpeg.labels else None,
                "verdict": self.forged_jpeg.verdict.value,
                "reasons": list(self.forged_jpeg.reasons),
            },
            "monitor": {"verdict": self.monitored.verdict.value},
            "picture": str(self.picture),
            "seconds": round(self.seconds, 1),
        }


def tell(bundle_path: Path, picture: Path, progress: Callable[[str], None]) -> Story:
    """Run the demo against real servers.

    Args:
        bundle_path: the default bundle.
        picture: where to draw.
        progress: told each step.

    """
    start = time.monotonic()
    bundle = open_bundle(bundle_path, trusted_keys())
    manifest, labels = bundle.manifest, bundle.labels
    photograph = cat().read_bytes()
    with running(bundle_path) as address, Client(address) as client:
        progress("sending the cat")
        [clean] = client.predict([photograph])
        progress("forging the cat into an iguana, 20 steps within 4/255")
        original = decode_image(photograph, manifest.input, manifest.preprocessing)
        classifier = EfficientNetLite()
        bare_clean = classify(classifier, original)
        forgery = forge(classifier, original)
        progress("sending the forgery")
        [forged] = client.predict([png(forgery.pixels)])
        progress("sending the forgery saved as JPEG 75")
        [forged_jpeg] = client.predict([jpeg(forgery.pixels)])
    progress("sending the forgery to a server in monitor mode")
    with running(bundle_path, "--mode", "monitor") as address, Client(address) as client:
        [monitored] = client.predict([png(forgery.pixels)])
    story = Story(
        clean=clean,
        bare_clean_label=labels[bare_clean[0]],
        bare_clean_probability=bare_clean[1],
        bare_label=labels[forgery.label],
        bare_probability=forgery.probability,
        forged=forged,
        forged_jpeg=forged_jpeg,
        monitored=monitored,
        picture=picture,
        seconds=time.monotonic() - start,
        fooled=forgery.label == IGUANA,
    )
    draw(picture, original, forgery.pixels, _captions(story))
    return story


def _answer(prediction: Prediction) -> str:
    labels = prediction.labels
    said = f", {labels[0].name}" if labels else ""
    return f"{prediction.verdict.value}{said}"


def _captions(story: Story) -> tuple[Caption, Caption, Caption]:
    top = story.clean.labels[0] if story.clean.labels else None
    said = f"{top.name} {100 * top.probability:.0f} %" if top else "no label"
    return (
        [
            ("the photograph", None),
            (
                f"bare classifier: {story.bare_clean_label} "
                f"{100 * story.bare_clean_probability:.0f} %",
                None,
            ),
            (
                f"firewall: {story.clean.verdict.value}, {said}",
                story.clean.verdict is Verdict.ACCEPT,
            ),
        ],
        [(f"the perturbation x {GAIN}", None), ("at most 4/255 in each value", None)],
        [
            ("the forgery", None),
            (
                f"bare classifier: {story.bare_label} {100 * story.bare_probability:.1f} %",
                not story.fooled,
            ),
            (
                f"firewall: {story.forged.verdict.value}, because of",
                story.forged.verdict is Verdict.REJECT,
            ),
            (", ".join(story.forged.reasons), None),
            (
                f"saved as JPEG 75: {_answer(story.forged_jpeg)}",
                story.jpeg_held,
            ),
        ],
    )
