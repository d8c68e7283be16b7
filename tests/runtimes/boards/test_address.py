from __future__ import annotations

import pytest

from nas.errors import RequestError
from nas.runtimes.boards.address import BoardAddress, at_address, is_remote, parse, target_text

EXAMPLE = "rpc://127.0.0.1:9090?npu=u65"


@pytest.mark.parametrize(
    ("text", "address", "settings"),
    [
        ("rpc://127.0.0.1:9090", BoardAddress("127.0.0.1", 9090), {}),
        ("rpc://[::1]:9090?npu=u65:A,b", BoardAddress("::1", 9090), {"npu": "u65:A,b"}),
        ("rpc://h:9190/a%20b?boards=2", BoardAddress("h", 9190, "a b", 2), {}),
        ("rpc?npu=u65", BoardAddress(), {"npu": "u65"}),
        ("rpc", BoardAddress(), {}),
    ],
)
def test_text_of_a_target_is_parsed_again(
    text: str, address: BoardAddress, settings: dict[str, str]
) -> None:
    assert is_remote(text)
    assert parse(text, ["npu"], EXAMPLE) == (address, settings)
    assert target_text(address if address.host else None, settings) == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("rpc://", "needs a host and a port"),
        ("rpc://board:many", "Port could not be cast"),
        ("rpc://board:99999", "Port out of range"),
        ("rpc://board:9090/two/keys", "not a tracker key"),
        ("rpc://board:9090/pi4?boards=0", "boards is '0'"),
        ("rpc://me:secret@board:9090", "more than an address"),
        ("rpc://board:9090#one", "more than an address"),
        ("rpc://board:9090?triple=aarch64", "'triple' is none of npu, boards"),
        ("rpc://board:9090?npu=", "'npu' should be given once, with a value"),
        ("rpc://board:9090?npu=a&npu=b", "'npu' should be given once"),
        ("rpc://board:9090?boards=2", "only a tracker"),
    ],
)
def test_malformed_targets_are_refused_with_an_example(text: str, reason: str) -> None:
    with pytest.raises(RequestError, match=r"For example rpc://127\.0\.0\.1:9090\?npu=u65") as it:
        parse(text, ["npu"], EXAMPLE)
    assert reason in it.value.message


@pytest.mark.parametrize("target", ["cpu", "rpcs://h:1", "ethos-u65-256"])
def test_devices_of_this_machine_are_not_remote(target: str) -> None:
    assert not is_remote(target)


@pytest.mark.parametrize("address", [None, "cpu"])
def test_table_of_a_board_needs_its_address(address: str | None) -> None:
    with pytest.raises(RequestError, match="Add --target rpc://HOST:PORT"):
        at_address("rpc?npu=u65", {}, address, ["npu"], EXAMPLE)
