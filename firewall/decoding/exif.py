"""The one EXIF field that changes pixels: orientation."""

from __future__ import annotations

import struct

_ORIENTATION = 0x0112
#: TIFF types of the orientation: SHORT by the standard, LONG by some writers.
_SHORT, _LONG = 3, 4
#: Entries of the first directory that are read. Cameras write about a dozen, in ascending order of
#: tag, and the orientation is among the first.
_MAX_ENTRIES = 512


def orientation(data: bytes) -> int:
    r"""Read the orientation from an EXIF block.

    Reads one field in bounded time. A general reader follows every offset in the block: thousands
    of entries may point at one large value, and each would be copied.

    Args:
        data: a TIFF structure, with or without the `Exif\0\0` in front of it.

    Returns:
        1 to 8; 1 (upright) when the block is damaged or does not say.

    """
    if data.startswith(b"Exif\0\0"):
        data = data[6:]
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(bytes(data[:4]))
    if order is None:
        return 1
    value = 1
    try:
        (start,) = struct.unpack_from(f"{order}I", data, 4)
        (entries,) = struct.unpack_from(f"{order}H", data, start)
        for entry in range(min(entries, _MAX_ENTRIES)):
            place = start + 2 + 12 * entry
            tag, kind = struct.unpack_from(f"{order}HH", data, place)
            if tag == _ORIENTATION and kind in (_SHORT, _LONG):
                letter = "H" if kind == _SHORT else "I"
                (value,) = struct.unpack_from(f"{order}{letter}", data, place + 8)
    except struct.error:
        return value if 1 <= value <= 8 else 1
    return value if 1 <= value <= 8 else 1
