from __future__ import annotations

import pytest

from nas.errors import RequestError
from nas.runtimes.tvm.rpc.address import RpcTarget, kind_of, parse
from nas.runtimes.tvm.runtime import TvmRuntime

PI = "triple=aarch64-linux-gnu&cpu=cortex-a72"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            f"rpc://127.0.0.1:9090?{PI}",
            RpcTarget("127.0.0.1", 9090, triple="aarch64-linux-gnu", cpu="cortex-a72"),
        ),
        (
            f"rpc://[::1]:9090?{PI}&features=+dotprod,-crypto&cc=/opt/bin/cc",
            RpcTarget(
                "::1",
                9090,
                triple="aarch64-linux-gnu",
                cpu="cortex-a72",
                features=("+dotprod", "-crypto"),
                cc="/opt/bin/cc",
            ),
        ),
    ],
)
def test_parse_reads_address_and_processor(text: str, expected: RpcTarget) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"rpc://board?{PI}", "needs a host and a port"),
        ("rpc://board:9090", "has no triple"),
        ("rpc://board:9090?triple=aarch64-linux-gnu", "has no cpu"),
        (f"rpc://board:9090?{PI}&threads=2", "'threads' is none of triple"),
        (f"rpc://board:9090?{PI}&features=dotprod", "starts with + or -"),
    ],
)
def test_parse_refuses_malformed_targets_with_an_example(text: str, reason: str) -> None:
    with pytest.raises(RequestError, match=r"For example rpc://127\.0\.0\.1:9090\?") as caught:
        parse(text)
    assert reason in caught.value.message
    assert caught.value.exit_status == 2


def test_kind_does_not_depend_on_the_address() -> None:
    kinds = {
        kind_of(f"rpc://127.0.0.1:9090?{PI}&cc=gcc"),
        kind_of("rpc://10.0.0.7:9190/pi4?cpu=cortex-a72&triple=aarch64-linux-gnu&boards=2"),
    }
    assert kinds == {f"rpc?{PI}"}
    assert kind_of("cpu") == "cpu"
    assert kind_of(f"rpc://b:1?{PI}&features=-b,+a") == kind_of(f"rpc://b:1?{PI}&features=+a,-b")


def test_at_address_adds_the_address_to_the_target_of_a_table() -> None:
    kind = f"rpc?{PI}"
    at_address = TvmRuntime.at_address
    assert at_address(kind, "rpc://127.0.0.1:9090") == f"rpc://127.0.0.1:9090?{PI}"
    assert at_address(kind, "rpc://h:1/pi4?boards=2") == f"rpc://h:1/pi4?{PI}&boards=2"
    assert at_address(kind, "rpc://h:1?cpu=a55") == f"rpc://h:1?{PI}".replace("cortex-a72", "a55")
    assert at_address("cpu", None) == at_address("cpu", "cpu") == "cpu"
    with pytest.raises(RequestError, match=r"Add --target rpc://HOST:PORT"):
        at_address(kind, None)
    with pytest.raises(RequestError, match="Leave --target out"):
        at_address("cpu", "rpc://127.0.0.1:9090")
