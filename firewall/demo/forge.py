"""The cat, forged into an iguana."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from firewall.attack.gradient import GradientAttack
from firewall.guard.classifier import Classifier

#: ImageNet's "common iguana".
IGUANA = 39
#: The forger's budget: 20 steps of 1/255 within 4/255 of every pixel value.
ATTACK = GradientAttack(radius=4 / 255, steps=20, step=1 / 255)


@dataclass(frozen=True)
class Forgery:
    """What the attack made, and what the bare classifier says of it.

    Attributes:
        pixels: [H, W, 3] uint8, as they are sent.
        label: class that the bare classifier sees.
        probability: that it gives that class, in [0, 1].

    """

    pixels: npt.NDArray[np.uint8]
    label: int
    probability: float


def classify(classifier: Classifier, pixels: npt.NDArray[np.uint8]) -> tuple[int, float]:
    """Top class and its probability, from the bare classifier, of [H, W, 3] pixels."""
    x = torch.from_numpy(pixels.astype(np.float32) / 255).permute(2, 0, 1)[None]
    with torch.no_grad():
        probabilities = torch.softmax(classifier(x).logits, dim=1)[0]
    label = int(probabilities.argmax())
    return label, float(probabilities[label])


def forge(classifier: Classifier, pixels: npt.NDArray[np.uint8]) -> Forgery:
    """Attack the bare classifier, aimed at the iguana, and round to eight bits a channel."""
    x = torch.from_numpy(pixels.astype(np.float32) / 255).permute(2, 0, 1)[None]
    forged = ATTACK(lambda batch: classifier(batch).logits, x, torch.tensor([IGUANA]), aimed=True)
    rounded = (forged * 255).round().to(torch.uint8)[0].permute(1, 2, 0).numpy()
    return Forgery(rounded, *classify(classifier, rounded))


def jpeg(pixels: npt.NDArray[np.uint8], quality: int = 75) -> bytes:
    """Encode as most pictures on the web are, with loss."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Encode without loss."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
