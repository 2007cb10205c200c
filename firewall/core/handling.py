"""What happens to photographs on their way to a classifier, none of it an attack.

A detector of forgeries must know these, or it learns that JPEG, noise or sharpening is forged.
All take and give [H, W, 3] uint8 pixels of one size.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageFilter

Pixels = npt.NDArray[np.uint8]
Handling = Callable[[Pixels, np.random.Generator], Pixels]

_SMOOTH = (
    Image.Resampling.BILINEAR,
    Image.Resampling.BICUBIC,
    Image.Resampling.LANCZOS,
    Image.Resampling.BOX,
)


def as_jpeg(pixels: Pixels, quality: int, *, subsampling: int = 2) -> Pixels:
    """Save as JPEG and open again; `subsampling` 0 keeps colour at full resolution."""
    return _saved(pixels, "JPEG", quality=quality, subsampling=subsampling)


def as_webp(pixels: Pixels, quality: int) -> Pixels:
    """Save as lossy WebP and open again."""
    return _saved(pixels, "WEBP", quality=quality)


def with_noise(pixels: Pixels, sigma: float, rng: np.random.Generator) -> Pixels:
    """Add Gaussian noise of `sigma` 255ths to each value."""
    noise = rng.normal(0.0, sigma, pixels.shape)
    return np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8)


def resized(pixels: Pixels, height: int, width: int, how: Image.Resampling) -> Pixels:
    """Resample to a size, with antialiasing where `how` is not NEAREST."""
    return np.asarray(Image.fromarray(pixels).resize((width, height), how))


def _saved(pixels: Pixels, name: str, **options: int) -> Pixels:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, name, **options)
    return np.asarray(Image.open(buffer).convert("RGB"))


def _jpeg(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    return as_jpeg(pixels, int(rng.integers(50, 96)), subsampling=int(rng.choice([0, 2])))


def _webp(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    return as_webp(pixels, int(rng.integers(50, 96)))


def _there_and_back(pixels: Pixels, share: float, rng: np.random.Generator) -> Pixels:
    height, width = pixels.shape[:2]
    down, up = (_SMOOTH[int(n)] for n in rng.integers(0, len(_SMOOTH), 2))
    small = resized(pixels, round(share * height), round(share * width), down)
    return resized(small, height, width, up)


def _resized(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    return _there_and_back(pixels, rng.uniform(0.55, 1.6), rng)


def _aliased(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Resize as torch, OpenCV and GPUs do by default: bilinear without antialiasing."""
    height, width = pixels.shape[:2]
    large = resized(pixels, round(height * 1.5), round(width * 1.5), Image.Resampling.BICUBIC)
    image = Image.fromarray(large)
    scale = image.width / width
    # An affine transform samples the four nearest pixels alone.
    moved = image.transform(
        (width, height),
        Image.Transform.AFFINE,
        (scale, 0, rng.uniform(0, scale / 2), 0, scale, rng.uniform(0, scale / 2)),
        Image.Resampling.BILINEAR,
    )
    return np.asarray(moved)


def _thumbnail(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    return _there_and_back(pixels, rng.uniform(0.25, 0.55), rng)


def _brightness(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    image = ImageEnhance.Brightness(Image.fromarray(pixels)).enhance(rng.uniform(0.6, 1.4))
    return np.asarray(image)


def _contrast(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    image = ImageEnhance.Contrast(Image.fromarray(pixels)).enhance(rng.uniform(0.6, 1.5))
    return np.asarray(ImageEnhance.Color(image).enhance(rng.uniform(0.6, 1.5)))


def _sharpened(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    mask = ImageFilter.UnsharpMask(
        radius=rng.uniform(0.8, 2.5), percent=int(rng.integers(30, 131)), threshold=2
    )
    return np.asarray(Image.fromarray(pixels).filter(mask))


def _grey(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    return np.asarray(Image.fromarray(pixels).convert("L").convert("RGB"))


def _screenshot(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Shown at another size, a part of it taken, a display's gamma, and often saved as JPEG."""
    height, width = pixels.shape[:2]
    scale = rng.uniform(1.02, 1.35)
    shown = resized(pixels, round(height * scale), round(width * scale), Image.Resampling.BILINEAR)
    top = int(rng.integers(0, len(shown) - height + 1))
    left = int(rng.integers(0, shown.shape[1] - width + 1))
    part = shown[top : top + height, left : left + width].astype(np.float64) / 255
    bent = np.rint(255 * part ** rng.uniform(0.85, 1.15)).astype(np.uint8)
    return _jpeg(bent, rng) if rng.random() < 0.5 else bent


def _noisy(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    return with_noise(pixels, rng.uniform(0.5, 3.0), rng)


def _as_it_is(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    return pixels


#: Every kind of handling, by name.
HANDLINGS: Mapping[str, Handling] = MappingProxyType(
    {
        "as it is": _as_it_is,
        "JPEG 50 to 95": _jpeg,
        "WebP 50 to 95": _webp,
        "resized": _resized,
        "resized without antialiasing": _aliased,
        "thumbnail scaled up": _thumbnail,
        "brightness": _brightness,
        "contrast and colour": _contrast,
        "sharpened": _sharpened,
        "grey": _grey,
        "screenshot": _screenshot,
        "noise, sigma up to 3/255": _noisy,
    }
)


def handled(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Handle one photograph in one way, drawn evenly."""
    names = tuple(HANDLINGS)
    return HANDLINGS[names[int(rng.integers(0, len(names)))]](pixels, rng)


def sent(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Save a picture as it is sent: half as PNG, the others as JPEG 60 to 95 or WebP."""
    kind = rng.random()
    if kind < 0.5:
        return pixels
    if kind < 0.85:
        return as_jpeg(pixels, int(rng.integers(60, 96)), subsampling=int(rng.choice([0, 2])))
    return as_webp(pixels, int(rng.integers(60, 96)))
