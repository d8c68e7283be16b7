"""Several equal devices: two real OpenSSH servers of this machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nas.errors import BoardLostError, RequestError
from nas.transports import transport_to
from nas.transports.address import joined_targets, separate_targets
from tests.transports.servers import SshServer, equal_servers


@pytest.fixture
def servers(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[SshServer]]:
    with equal_servers(tmp_path_factory.mktemp("ssh"), monkeypatch) as servers:
        yield servers


def test_first_device_that_answers_is_used_until_it_is_lost(servers: list[SshServer]) -> None:
    first, other = servers
    with transport_to(f"{first.address} {other.address}") as device:
        assert device.run(["echo", "one"]) == b"one\n"
        assert device.address == first.address
        first.stop()
        with pytest.raises(BoardLostError, match=first.address):
            device.run(["echo", "what was begun there is lost"])
        assert device.run(["echo", "two"]) == b"two\n"
        assert device.address == other.address
        first.start()
        other.stop()
        with pytest.raises(BoardLostError, match=other.address):
            device.run(["true"])
        assert device.run(["echo", "three"]) == b"three\n"
        first.stop()
    with (
        transport_to(f"{other.address} {first.address}") as device,
        pytest.raises(BoardLostError, match=f"{other.address} .*; {first.address}"),
    ):
        device.run(["true"])


def test_device_that_does_not_answer_at_first_is_left_out(servers: list[SshServer]) -> None:
    first, other = servers
    first.stop()
    with transport_to(f"{first.address} {other.address}") as device:
        assert device.run(["echo", "one"]) == b"one\n"
        assert device.address == other.address


def test_targets_of_equal_devices_are_one() -> None:
    one = joined_targets(["ssh://pi1?python=py", "ssh://pi2:22?python=py"])
    assert one == "ssh://pi1 ssh://pi2:22?python=py"
    assert separate_targets(one) == ["ssh://pi1?python=py", "ssh://pi2:22?python=py"]
    assert joined_targets(["adb:"]) == "adb:"
    with pytest.raises(RequestError, match="the same ones"):
        joined_targets(["ssh://pi1?python=py", "ssh://pi2"])
    with pytest.raises(RequestError, match="named twice"):
        transport_to("ssh://pi1 ssh://pi1")
    with pytest.raises(RequestError, match="no name of a host"):
        transport_to("ssh://pi1 ssh://-oProxyCommand=x")
