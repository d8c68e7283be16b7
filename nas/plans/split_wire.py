"""Messages between the two parts of a network that run on two machines.

The scripts `device.py` and `server.py` of a split network hold copies of this text, so that it
imports NumPy only. A message is a header and the values of one tensor: the number of its type, the
number of its bytes, and for int8 the scale and the smallest value, all in little-endian order.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Mapping

import numpy as np

TRANSFERS: Mapping[str, str] = {"float32": "<f4", "float16": "<f2", "int8": "u1"}
"""How the values of a tensor can be sent, with the type in NumPy.

As int8, the range from the smallest to the largest value of each tensor has 256 equal steps.
"""

_HEADER = struct.Struct("<IIff")

_LARGEST_FLOAT16 = 65504.0

_SECONDS_OF_A_DAY = 86400


def message_bytes(values: int, transfer: str) -> int:
    """Return the size of a message with so many values."""
    return _HEADER.size + values * np.dtype(TRANSFERS[transfer]).itemsize


def pack(values: np.ndarray, transfer: str) -> bytes:
    """Return the message with the values of a tensor of any shape, which must be finite."""
    flat, scale, low = np.asarray(values, np.float32).ravel(), np.float32(1), np.float32(0)
    if transfer == "float16":
        flat = flat.clip(-_LARGEST_FLOAT16, _LARGEST_FLOAT16)
    elif transfer == "int8":
        low = flat.min()
        scale = (flat.max() - low) / np.float32(255) or scale
        flat = np.rint((flat - low) / scale).clip(0, 255)
    content = flat.astype(TRANSFERS[transfer]).tobytes()
    return _HEADER.pack(list(TRANSFERS).index(transfer), len(content), scale, low) + content


def unpack(message: bytes) -> np.ndarray:
    """Return the values of a message as a float32 vector. Raises ValueError for no message."""
    try:
        number, size, scale, low = _HEADER.unpack_from(message)
        transfer = list(TRANSFERS)[number]
    except (struct.error, IndexError):
        raise ValueError("it has no header of a message") from None
    content = message[_HEADER.size :]
    if len(content) != size:
        raise ValueError(f"it has {len(content)} bytes of content, not {size}")
    values = np.frombuffer(content, TRANSFERS[transfer]).astype(np.float32)
    return values * np.float32(scale) + np.float32(low) if transfer == "int8" else values


def seconds(text: str) -> float:
    """Return the limit that an option gives. Raises ValueError for none within a day."""
    value = float(text)
    if not 0 < value <= _SECONDS_OF_A_DAY:
        raise ValueError(f"{text} is no limit")
    return value


def connected(address: tuple[str, int], limit_s: float) -> socket.socket:
    """Return a connection that sends each message at once, made and used within a limit."""
    connection = socket.create_connection(address, limit_s)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def send(connection: socket.socket, message: bytes, limit_s: float) -> None:
    """Send a message. Raises TimeoutError if the other side does not take it within the limit."""
    connection.settimeout(limit_s)
    try:
        connection.sendall(message)
    except TimeoutError:
        raise TimeoutError(f"a message was not taken within {limit_s:g} s") from None


def receive(connection: socket.socket, values: int, limit_s: float) -> bytes:
    """Return the next message of a connection, with at most so many values; b"" at its end.

    Raises ValueError for anything else, such as a message that ends early, and TimeoutError if the
    whole message does not come within the limit.
    """
    end_s = time.monotonic() + limit_s
    try:
        header = _receive_exactly(connection, _HEADER.size, end_s)
        if not header:
            return b""
        size = _HEADER.unpack(header)[1] if len(header) == _HEADER.size else 0
        if not 0 < size <= 4 * values:
            raise ValueError(f"a message of {size} bytes came, and {4 * values} are the most")
        content = _receive_exactly(connection, size, end_s)
    except TimeoutError:
        raise TimeoutError(f"no whole message came within {limit_s:g} s") from None
    if len(content) != size:
        raise ValueError("a message ended early")
    return header + content


def _receive_exactly(connection: socket.socket, size: int, end_s: float) -> bytes:
    """Return so many bytes, or fewer if the connection ends before.

    Raises TimeoutError at the time `end_s`: a limit for each `recv` alone would let a peer that
    sends byte by byte hold the connection.
    """
    content = b""
    while len(content) < size:
        remaining_s = end_s - time.monotonic()
        if remaining_s <= 0:
            raise TimeoutError
        connection.settimeout(remaining_s)
        chunk = connection.recv(size - len(content))
        if not chunk:
            break
        content += chunk
    return content
