import onnx
import pytest
from dlm_edge.runtime.bundle.protobuf import (
    BYTES,
    FIXED32,
    VARINT,
    fields,
    packed,
    signed,
    varint,
    write_field,
    write_varint,
)
from hypothesis import given
from hypothesis import strategies as st

INT64 = st.integers(-(2**63), 2**63 - 1)


@given(INT64)
def test_integers_come_back_as_they_were_written(number):
    data = memoryview(write_varint(number))
    value, end = varint(data, 0, len(data))
    assert (signed(value), end) == (number, len(data))


@given(st.lists(INT64, max_size=20))
def test_packed_lists_are_read_as_the_protobuf_library_writes_them(numbers):
    message = onnx.TensorProto(int64_data=numbers)
    data = memoryview(message.SerializeToString())
    found = [packed(data, start, end) for number, _, start, end in fields(data, 0, len(data))]
    assert found == ([numbers] if numbers else [])


@given(st.text(max_size=20), INT64)
def test_fields_are_written_as_the_protobuf_library_reads_them(text, number):
    data = write_field(8, text) + write_field(1, number)
    message = onnx.TensorProto.FromString(data)
    assert (message.name, list(message.dims)) == (text, [number])


def test_every_wire_type_is_walked():
    message = onnx.AttributeProto(name="a", f=0.5, i=3)
    data = memoryview(message.SerializeToString())
    kinds = [(number, kind) for number, kind, _, _ in fields(data, 0, len(data))]
    assert sorted(kinds) == [(1, BYTES), (2, FIXED32), (3, VARINT)]


@pytest.mark.parametrize("data", [b"\x80", b"\x0a\x05ab", b"\x0d\x00", b"\x09\x00", b"\x0b"])
def test_a_broken_message_is_a_value_error(data):
    with pytest.raises(ValueError, match=r"varint|field|wire"):
        list(fields(memoryview(data), 0, len(data)))


@given(st.binary(max_size=40))
def test_any_bytes_are_walked_or_refused_and_never_left(data):
    try:
        for _, kind, start, end in fields(memoryview(data), 0, len(data)):
            assert kind == VARINT or 0 <= start <= end <= len(data)
    except ValueError:
        return
