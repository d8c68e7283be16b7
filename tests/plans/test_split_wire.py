"""Messages between the two parts of a network: what is sent comes back."""

import socket
import struct

import numpy as np
import pytest

from nas.plans.split_wire import TRANSFERS, message_bytes, pack, receive, unpack

VALUES = np.random.default_rng(0).normal(0, 3, (4, 5, 6)).astype(np.float32)


@pytest.mark.parametrize(
    ("transfer", "tolerance"),
    [("float32", 0.0), ("float16", 2**-11 * 16), ("int8", (VALUES.max() - VALUES.min()) / 509)],
)
def test_values_come_back_within_the_steps_of_their_type(transfer, tolerance):
    message = pack(VALUES, transfer)
    assert len(message) == message_bytes(VALUES.size, transfer)
    back = unpack(message)
    assert back.dtype == np.float32
    assert np.abs(back - VALUES.ravel()).max() <= tolerance


@pytest.mark.parametrize("transfer", TRANSFERS)
@pytest.mark.parametrize("value", [0.0, -1.5, 1e-40, 3e4])
def test_equal_values_come_back_as_they_are(transfer, value):
    values = np.full(7, value, np.float32)
    assert unpack(pack(values, transfer)) == pytest.approx(values, rel=2**-11, abs=1e-7)


def test_values_beyond_float16_become_its_largest():
    assert unpack(pack(np.array([1e6, -1e6]), "float16")).tolist() == [65504.0, -65504.0]


def test_types_are_smaller_than_each_other():
    sizes = [message_bytes(1000, transfer) for transfer in ("float32", "float16", "int8")]
    assert sizes == [4016, 2016, 1016]


@pytest.mark.parametrize(
    "message", [b"", b"short", struct.pack("<IIff", 9, 0, 1, 0), pack(VALUES, "int8")[:-1]]
)
def test_no_message_is_an_error(message):
    with pytest.raises(ValueError, match="it has"):
        unpack(message)


def test_messages_are_received_one_by_one():
    one, other = socket.socketpair()
    with one, other:
        first, second = pack(VALUES, "int8"), pack(VALUES, "float32")
        one.sendall(first + second)
        assert receive(other, VALUES.size) == first
        assert receive(other, VALUES.size) == second
        one.close()
        assert receive(other, VALUES.size) == b""


@pytest.mark.parametrize(
    "content",
    [
        pack(VALUES, "float32"),  # more than the receiver expects
        pack(VALUES[:1], "int8")[:-1],
        b"GET / HTTP/1.1\r\nHost: x\r\n",
        b"cut",
    ],
)
def test_anything_else_is_an_error(content):
    one, other = socket.socketpair()
    with one, other:
        one.sendall(content)
        one.close()
        with pytest.raises(ValueError, match="message"):
            receive(other, VALUES.size // 4)
