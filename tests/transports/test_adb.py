"""Tests of `nas.transports.adb` against a stand-in for the client."""

import threading

import pytest

from nas.errors import BoardLostError, DeviceError, RequestError
from nas.transports import transport_to
from tests.transports import fake_adb


@pytest.fixture
def phone(tmp_path, monkeypatch):
    return fake_adb.install(tmp_path, monkeypatch)


@pytest.fixture
def device(phone):
    with transport_to(phone.address) as device:
        yield device


def test_unplugged_phone_is_a_lost_board_and_the_next_use_asks_again(phone, device):
    with device.start(["sleep", "60"]) as program:
        threading.Timer(0.3, phone.cut).start()
        with pytest.raises(BoardLostError, match="the connection was lost.*adb devices"):
            program.read_exactly(1)
    device.close()
    with pytest.raises(BoardLostError, match="no devices"):
        device.run(["true"])
    phone.come_back()
    assert device.run(["echo", "again"]) == b"again\n"


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        ("locked", BoardLostError, "Unlock it"),
        ("old", DeviceError, "no shell_v2.*Android 7"),
    ],
)
def test_unusable_phones_are_named_with_a_remedy(phone, device, state, error, message):
    (phone.folder / state).touch()
    with pytest.raises(error, match=message):
        device.run(["true"])


def test_serial_number_chooses_the_phone(phone):
    assert transport_to(f"adb:{fake_adb.SERIAL}").run(["echo", "yes"]) == b"yes\n"
    with pytest.raises(BoardLostError, match="'192.168.1.7:5555' not found"):
        transport_to("adb:192.168.1.7:5555").run(["true"])
    with pytest.raises(RequestError, match="no serial number"):
        transport_to("adb:-s x")


def test_missing_client_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RequestError, match="Debian: adb"):
        transport_to("adb:").run(["true"])
