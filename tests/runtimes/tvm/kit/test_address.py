from __future__ import annotations

import pytest

from nas.errors import RequestError
from nas.runtimes.tvm.kit.address import EXAMPLE, KitTarget, is_kit, parse


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (EXAMPLE, KitTarget("pixel-6", "aarch64-linux-gnu", "cortex-a76")),
        (
            "kit:Cam.2_b?triple=armv7-linux-gnueabihf&cpu=cortex-a9&features=+neon,-crc",
            KitTarget("Cam.2_b", "armv7-linux-gnueabihf", "cortex-a9", ("+neon", "-crc")),
        ),
    ],
)
def test_parse_reads_what_text_writes(text: str, expected: KitTarget) -> None:
    assert is_kit(text)
    assert parse(text) == expected
    assert expected.text == text


def test_order_of_settings_makes_no_difference() -> None:
    text = "kit:a?features=-b,+a&cpu=cortex-a9&triple=armv7-linux-gnueabihf"
    assert parse(text).text == ("kit:a?triple=armv7-linux-gnueabihf&cpu=cortex-a9&features=+a,-b")


@pytest.mark.parametrize("target", ["cpu", "cuda", "kit", "kitchen?cpu=a", "tcp://kit:1"])
def test_other_targets_are_no_kits(target: str) -> None:
    assert not is_kit(target)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("kit:?triple=a-linux-gnu&cpu=b", "'' is no name of a device"),
        ("kit:-a?triple=a-linux-gnu&cpu=b", "'-a' is no name"),
        (f"kit:{'a' * 41}?triple=a-linux-gnu&cpu=b", "1 to 40 letters"),
        ("kit:a/b?triple=a-linux-gnu&cpu=b", "'a/b' is no name"),
        ("kit:a", "has no triple"),
        ("kit:a?triple=a-linux-gnu", "has no cpu"),
        ("kit:a?triple=a-linux-gnu&cpu=", "'cpu' should be given once, with a value"),
        (
            "kit:a?triple=a-linux-gnu&cpu=b&cc=gcc",
            "'cc', and there are triple, cpu, features",
        ),
        ("kit:a?triple=a-linux-gnu&cpu=b&features=neon", "starts with + or -"),
    ],
)
def test_parse_refuses_malformed_targets_with_an_example(text: str, reason: str) -> None:
    with pytest.raises(RequestError, match=r"For example kit:pixel-6\?triple") as caught:
        parse(text)
    assert reason in caught.value.message
