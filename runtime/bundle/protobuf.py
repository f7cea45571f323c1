"""The protobuf wire format: walking the fields of a message, and writing them. Knows no message.

Enough to read and write ONNX files without the onnx package, which the device does not have.
Everything that is not a sound message raises ValueError.

Source: Protocol Buffers documentation, "Encoding".
"""

from __future__ import annotations

from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types."""

Field = tuple[int, int, int, int]
"""Number, wire type, and: start and end of the bytes; for a varint its value, and 0."""


def varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    """Returns (value, position behind it) of the varint at `at`; ValueError if it does not end."""
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise ValueError("a varint without an end")


def fields(data: memoryview, at: int, end: int) -> Iterator[Field]:
    """Yields each field of the message that lies at data[at:end]."""
    while at < end:
        key, at = varint(data, at, end)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            value, at = varint(data, at, end)
            yield number, kind, value, 0
            continue
        match kind:
            case 1:
                size = 8
            case 2:
                size, at = varint(data, at, end)
            case 5:
                size = 4
            case _:
                raise ValueError("an unknown wire type")
        if size > end - at:
            raise ValueError("a field beyond its message")
        yield number, kind, at, at + size
        at += size


def signed(value: int) -> int:
    """Reads a varint's value as an int64."""
    return value - (1 << 64) if value >> 63 else value


def packed(data: memoryview, at: int, end: int) -> list[int]:
    """Returns the int64 values of a packed field."""
    values = []
    while at < end:
        value, at = varint(data, at, end)
        values.append(signed(value))
    return values


def write_varint(value: int) -> bytes:
    """Encodes an int64."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def write_field(number: int, value: int | bytes | str) -> bytes:
    """Encodes one field: an integer as varint, bytes and text with their length."""
    if isinstance(value, int):
        return write_varint(number << 3 | VARINT) + write_varint(value)
    data = value.encode() if isinstance(value, str) else value
    return write_varint(number << 3 | BYTES) + write_varint(len(data)) + data
