"""Count the fields of a protobuf message before it is parsed.

An empty sub-message takes two bytes on the wire and a hundred as an object, so that a small message
could take gigabytes. Fields are counted without building anything; bytes, text and packed numbers
are skipped whole, so that an honest tensor costs a few steps whatever its size.
"""

from __future__ import annotations

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from firewall.errors import InvalidInput

#: Fields of one message, all levels together. An honest request has dozens.
MAX_FIELDS = 4096


def check_fields(data: bytes, descriptor: Descriptor) -> None:
    """Refuse a message of too many fields.

    Args:
        data: the message.
        descriptor: its type, by which sub-messages are told from bytes.

    Raises:
        InvalidInput: too many fields, or bytes that are no message, as far as they were counted.

    """
    if len(data) <= 2 * MAX_FIELDS:
        # A field takes two bytes at least: there cannot be too many.
        return
    pending = [(0, len(data), descriptor)]
    count = 0
    while pending:
        place, end, kind = pending.pop()
        while place < end:
            count += 1
            if count > MAX_FIELDS:
                raise InvalidInput("message", f"more than {MAX_FIELDS} fields")
            tag, place = varint(data, place, end, kind)
            wire_type = tag & 7
            if wire_type == 0:
                _, place = varint(data, place, end, kind)
            elif wire_type == 1:
                place += 8
            elif wire_type == 5:
                place += 4
            elif wire_type == 2:
                size, place = varint(data, place, end, kind)
                field: FieldDescriptor | None = kind.fields_by_number.get(tag >> 3)
                if field is not None and field.message_type is not None:
                    pending.append((place, min(place + size, end), field.message_type))
                place += size
            else:
                raise _not_a_message(kind)
        if place > end:
            raise _not_a_message(kind)


def varint(data: bytes, place: int, end: int, kind: Descriptor) -> tuple[int, int]:
    """Read a number at a place; returns it and the place after it. `InvalidInput` without one."""
    value = shift = 0
    while place < end and shift < 70:
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place += 1
        if byte < 0x80:
            return value, place
        shift += 7
    raise _not_a_message(kind)


def _not_a_message(kind: Descriptor) -> InvalidInput:
    return InvalidInput("message", f"is not a {kind.full_name}")
