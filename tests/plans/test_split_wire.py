"""Messages between the two parts of a network: what is sent comes back."""

import itertools
import re
import socket
import struct
import threading

import numpy as np
import pytest

from nas.plans.split_wire import (
    TRANSFERS,
    connected,
    message_bytes,
    pack,
    receive,
    seconds,
    send,
    unpack,
)

LIMIT_S = 60.0
"""Generous: what comes within it comes at once."""

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
        assert receive(other, VALUES.size, LIMIT_S) == first
        assert receive(other, VALUES.size, LIMIT_S) == second
        one.close()
        assert receive(other, VALUES.size, LIMIT_S) == b""


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
            receive(other, VALUES.size // 4, LIMIT_S)


@pytest.mark.parametrize("sent", [b"", pack(VALUES, "int8")[:5], pack(VALUES, "int8")[:-1]])
def test_silence_ends_at_the_limit(sent):
    one, other = socket.socketpair()
    with one, other:
        one.sendall(sent)
        with pytest.raises(TimeoutError, match=re.escape("no whole message came within 0.05 s")):
            receive(other, VALUES.size, 0.05)


def test_a_peer_that_sends_byte_by_byte_has_no_longer_than_the_limit():
    one, other = socket.socketpair()
    is_over = threading.Event()

    def drip() -> None:
        for each in itertools.cycle(pack(VALUES[:1], "float32")):
            if is_over.wait(0.02):
                return
            one.sendall(bytes([each]))

    with one, other:
        thread = threading.Thread(target=drip)
        thread.start()
        try:
            # The message of 136 bytes would take 2.7 s, without a pause of more than 0.02 s.
            with pytest.raises(TimeoutError):
                receive(other, VALUES.size, 0.5)
        finally:
            is_over.set()
            thread.join()


def test_a_peer_that_takes_nothing_is_left_at_the_limit():
    one, other = socket.socketpair()
    with one, other, pytest.raises(TimeoutError, match=re.escape("not taken within 0.05 s")):
        send(one, bytes(1 << 26), 0.05)


def test_connection_has_its_limit():
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        connected(server.getsockname(), 7.0) as connection,
    ):
        assert connection.gettimeout() == 7.0


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "1e6", "", "soon"])
def test_limits_are_seconds_of_a_day(text):
    assert (seconds("0.5"), seconds("86400")) == (0.5, 86400)
    with pytest.raises(ValueError, match="limit|float"):
        seconds(text)
