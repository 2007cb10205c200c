"""From an encoded photograph to the pixels that a guard screens. Numpy and Pillow only.

Two programs may read one file differently, and an attacker may use the difference: the guard
accepts one picture, the classifier is shown another. What happens here, in this order:

1. The header is read from the bytes (`image_header`). JPEG (Huffman-coded: baseline, extended
   sequential, progressive; 8 bits), PNG (8 bits a channel and fewer) and WebP are known; the first
   bytes decide, a name or content type never does.
2. Refused before any pixel is decoded: animations (APNG, animated WebP), more than 8 bits a
   channel, more than `max_pixels` pixels, more than `max_scan_pixels` pixels x scans, and images so
   thin that resizing would make more than `max_pixels` of them.
3. Metadata, colour profiles and gamma are cut out and never parsed; EXIF orientation is the one
   field that was read, in step 1. XMP orientation is ignored.
4. The pixels are decoded. A JPEG that will be made smaller by more than half is decoded at 1/2,
   1/4 or 1/8 of its size (libjpeg's scaled inverse transform, `draft` in Pillow), to at least twice
   `preprocessing.resize`. Files that end early are refused.
5. An alpha channel that is not opaque everywhere is refused, unless the model takes 4 channels.
6. The pixels are converted to the model's channels: grey by ITU-R 601 luma, palettes looked up,
   CMYK by (255 - c)(255 - k) / 255 without a colour profile.
7. EXIF orientation is applied: training and serving both see the picture upright.
8. An image of the model's height and width is taken pixel for pixel. Any other is resized until its
   shorter side is `preprocessing.resize` (bicubic, antialiased: when shrinking, the filter's
   support grows with the scale, so every source pixel has a share), and the centre is cropped. With
   `preprocessing.fit = "squash"` it is resized to the model's height and width at once.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from firewall.decoding.image_header import ImageHeader, read_header, strip
from firewall.errors import InvalidInput

if TYPE_CHECKING:
    # A process that decodes starts in half the time without pydantic.
    from firewall.bundle.spec import InputSpec, Preprocessing

#: Pixels of an image that are decoded, by default.
MAX_PIXELS = 25_000_000
#: Pixels x scans that are decoded, by default: a progressive JPEG of 25 megapixels may have 12
#: scans, and writers of colour images make 10. Measured with Pillow 13 on one core of an AMD EPYC,
#: processor time of decoding, converting and resizing to 224 pixels: 5000 x 5000 pixels, 4:4:4, in
#: 12 scans take 0.24 s when flat (290 KB) and 0.44 s when not (9 MB), where 210 scans in 300 KB
#: take 3.9 s. Slowest within both limits: 1.3 s, a progressive JPEG of 40 MB of noise.
MAX_SCAN_PIXELS = 300_000_000

_COLOURS = {1: "L", 3: "RGB", 4: "RGBA"}
_READERS: dict[str, type[JpegImageFile | PngImageFile | WebPImageFile]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WebP": WebPImageFile,
}
#: EXIF orientation -> what makes the picture upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Target:
    """Size and channels that every image is brought to, and the resize before the crop."""

    width: int
    height: int
    channels: int
    resize: int
    #: Resize to the width and height at once, without a crop.
    squash: bool = False

    @classmethod
    def of(cls, spec: InputSpec, preprocessing: Preprocessing) -> Target:
        """What a bundle asks for."""
        return cls(
            spec.width,
            spec.height,
            spec.channels,
            preprocessing.resize,
            preprocessing.fit == "squash",
        )

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Size of an upright image before the centre is cropped; a thin image becomes long."""
        if self.squash or (width, height) == (self.width, self.height):
            return self.width, self.height
        scale = max(
            self.resize / max(1, min(width, height)), self.width / width, self.height / height
        )
        return max(self.width, round(width * scale)), max(self.height, round(height * scale))


@dataclass(frozen=True)
class Plan:
    """An image within the limits, what decoding it costs, and how it will be done."""

    header: ImageHeader
    #: 1, 2, 4 or 8, by which a JPEG is decoded smaller.
    scale: int
    #: Bytes held at once by decoding, converting and resizing, the file included.
    needed_bytes: int
    #: Seconds on one core, an upper estimate.
    seconds: float


def decode_image(
    data: bytes,
    spec: InputSpec,
    preprocessing: Preprocessing,
    *,
    field: str = "image",
    max_pixels: int = MAX_PIXELS,
    max_scan_pixels: int = MAX_SCAN_PIXELS,
) -> npt.NDArray[np.uint8]:
    """Decode a JPEG, PNG or WebP file and bring it to the model's size, as the module describes.

    Returns:
        [H, W, C] uint8.

    Raises:
        InvalidInput: naming `field`: not an image, damaged, over a limit, animated, or not opaque.

    """
    return decode_to(
        data,
        Target.of(spec, preprocessing),
        field=field,
        max_pixels=max_pixels,
        max_scan_pixels=max_scan_pixels,
    )


def decode_to(
    data: bytes,
    target: Target,
    *,
    field: str,
    max_pixels: int = MAX_PIXELS,
    max_scan_pixels: int | None = None,
) -> npt.NDArray[np.uint8]:
    """Decode an image as `decode_image`, to a size: [H, W, C] uint8.

    Raises:
        InvalidInput: naming `field`.

    """
    if max_scan_pixels is None:
        max_scan_pixels = 12 * max_pixels
    plan = plan_decoding(
        data, target, field=field, max_pixels=max_pixels, max_scan_pixels=max_scan_pixels
    )
    return decode(data, plan, target, field=field)


def plan_decoding(
    data: bytes,
    target: Target,
    *,
    field: str,
    max_pixels: int = MAX_PIXELS,
    max_scan_pixels: int = MAX_SCAN_PIXELS,
) -> Plan:
    """Check an image against the limits and estimate its cost, without decoding it.

    Raises:
        InvalidInput: naming `field`: what `decode_image` refuses before decoding.

    """
    header = checked_header(data, field, max_pixels, max_scan_pixels)
    size = f"{header.width} x {header.height}"
    upright = _upright_size(header)[::-1]
    resized = target.resized(*upright)
    if resized[0] * resized[1] > max_pixels:
        raise InvalidInput(
            field,
            f"{size} pixels, which resizing would make {resized[0]} x {resized[1]}; at most "
            f"{max_pixels}, so send an image that is less thin",
        )
    scale = 1
    if header.format == "JPEG" and upright != (target.width, target.height):
        spare = min(header.width, header.height) // (2 * target.resize)
        scale = max((factor for factor in (1, 2, 4, 8) if factor <= spare), default=1)
    return Plan(
        header,
        scale,
        _needed_bytes(header, scale, resized, target) + 2 * len(data),
        _seconds(header, scale, resized, len(data)),
    )


def checked_header(data: bytes, field: str, max_pixels: int, max_scan_pixels: int) -> ImageHeader:
    """Read the header of an image, and check it against the limits.

    Raises:
        InvalidInput: naming `field`: what `decode_image` refuses by the header alone.

    """
    header = read_header(data, field)
    size = f"{header.width} x {header.height}"
    if header.animated:
        raise InvalidInput(field, "an animation; send the frame that your classifier sees")
    if header.bits > 8:
        raise InvalidInput(field, f"{header.bits} bits a channel; expected 8 bits a channel")
    if header.pixels > max_pixels:
        raise InvalidInput(
            field, f"{size} pixels; at most {max_pixels} are decoded, so send a smaller image"
        )
    if header.work * 1e6 > max_scan_pixels:
        raise InvalidInput(
            field,
            f"{size} pixels in {header.scans} scans; at most {max_scan_pixels} pixels x scans are "
            "decoded, so save it as a baseline JPEG",
        )
    return header


def _needed_bytes(header: ImageHeader, scale: int, resized: tuple[int, int], target: Target) -> int:
    """Bytes of the largest step; each step frees what the step before it read."""
    stored = -(-header.width // scale) * -(-header.height // scale)
    source = 4 if header.channels > 1 and not header.palette else 1
    goal = 4 if target.channels > 1 else 1
    same = (
        header.channels == target.channels
        and not header.palette
        and header.alpha == (target.channels == 4)
    )
    # With alpha, by way of RGBA.
    converted = 0 if same else stored * (source + (4 if header.alpha else goal))
    turned = 2 * goal * stored if header.orientation in _UPRIGHT else 0
    # Columns are resized first, into an image of the new width and the old height.
    height = header.width if header.orientation > 4 else header.height
    shrunk = goal * (stored + resized[0] * (-(-height // scale) + resized[1]))
    if target.channels == 4:
        # Resized with colours multiplied by alpha: a copy before and one after.
        shrunk += goal * (stored + resized[0] * resized[1])
    # Pillow's WebP image keeps its two canvases.
    kept = 8 * stored if header.format == "WebP" else 0
    return max(header.decoded_bytes(scale), kept + converted, kept + turned, kept + shrunk)


def _seconds(header: ImageHeader, scale: int, resized: tuple[int, int], length: int) -> float:
    """Seconds on a core of the machine on which the constants were measured, rounded up.

    Measured on 12 and 24 megapixels of noise, of flat colour, and of both mixed, with Pillow 13 on
    one core of an AMD EPYC; scans without data, repeated, gave the cost of a scan (0.2 to 0.7 ms a
    megapixel, most when they refine).
    """
    stored = header.pixels / scale**2 / 1e6
    if header.format == "JPEG":
        # Noise is 10 ns a byte of a baseline file, and 30 of a progressive one.
        decoding = length * (30e-9 if header.coefficient_bytes else 10e-9)
        decoding += header.work * 0.0011 + stored * 0.004
    else:
        decoding = stored * (0.040 if header.format == "PNG" else 0.045)
    # To convert, to turn and to resize.
    return decoding + stored * 0.026 + resized[0] * resized[1] / 1e6 * 0.014


def decode(data: bytes, plan: Plan, target: Target, *, field: str) -> npt.NDArray[np.uint8]:
    """Decode an image whose plan was made by `plan_decoding`: [H, W, C] uint8.

    Raises:
        InvalidInput: naming `field`: damaged, or not opaque.

    """
    shorter = 2 * target.resize if plan.scale > 1 else 0
    return fit(_upright(data, plan.header, target.channels, shorter, field), target)


def upright_size(data: bytes, field: str) -> tuple[int, int]:
    """Height and width of an image when it stands upright, from its header alone.

    Raises:
        InvalidInput: naming `field`: not an image.

    """
    return _upright_size(read_header(data, field))


def _upright_size(header: ImageHeader) -> tuple[int, int]:
    size = (header.height, header.width)
    return size[::-1] if header.orientation > 4 else size


def open_upright(
    data: bytes, channels: int, *, field: str, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Decode an image at its own size, upright, as the module describes in steps 1 to 7.

    Args:
        data: the file.
        channels: 1, 3 or 4.
        field: that errors name.
        max_pixels: at most, and twelve times as many pixels x scans.

    Raises:
        InvalidInput: naming `field`: what `decode_image` refuses.

    """
    header = checked_header(data, field, max_pixels, 12 * max_pixels)
    return _upright(data, header, channels, 0, field)


def _upright(
    data: bytes, header: ImageHeader, channels: int, shorter: int, field: str
) -> Image.Image:
    """Decode an image of a checked header; a JPEG at a smaller scale, if `shorter` says so."""
    colour = _COLOURS[channels]
    try:
        # The formats' own classes: Image.open tries every format, and has limits of its own.
        image: Image.Image = _READERS[header.format](io.BytesIO(strip(data, header)))
        if image.size != (header.width, header.height):
            raise InvalidInput(field, "a damaged or truncated image")
        if shorter:
            image.draft(None, (shorter, shorter))
        image.load()
        if header.alpha and channels != 4:
            image = _opaque(image, field)
        if image.mode != colour:
            image = image.convert(colour)
        if header.orientation in _UPRIGHT:
            image = image.transpose(_UPRIGHT[header.orientation])
    except InvalidInput:
        raise
    except MemoryError as error:
        raise InvalidInput(field, "needs more memory to decode than there is") from error
    except Exception as error:
        # Pillow raises a dozen kinds on damaged files; none of their texts is for a client.
        raise InvalidInput(field, "a damaged or truncated image") from error
    return image


def fit(image: Image.Image, target: Target) -> npt.NDArray[np.uint8]:
    """Resize and centre-crop an upright image of the target's channels: [H, W, C] uint8."""
    if image.size != (target.width, target.height):
        size = target.resized(*image.size)
        image = image.resize(size, Image.Resampling.BICUBIC)
        left = (size[0] - target.width) // 2
        top = (size[1] - target.height) // 2
        image = image.crop((left, top, left + target.width, top + target.height))
    pixels = np.asarray(image, np.uint8)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _opaque(image: Image.Image, field: str) -> Image.Image:
    """The image with an alpha channel, checked to hide nothing."""
    if image.mode not in ("LA", "RGBA"):
        # A palette with transparent entries, or a colour that stands for transparency.
        image = image.convert("RGBA")
    lowest, _ = image.getchannel("A").getextrema()
    if lowest != 255:
        raise InvalidInput(
            field,
            "has transparent pixels; flatten the image onto the background that your classifier "
            "sees",
        )
    return image
