import pytest

from nas.errors import RequestError
from nas.latency import open_runtime
from nas.runtimes.ethos_u.configuration import PARTS, Target, configuration
from nas.runtimes.ethos_u.runtime import EthosURuntime

pytest.importorskip("ethosu")


def test_target_without_names_is_the_default_system():
    target = Target.parse("ethos-u55-128")
    assert (target.system, target.memory) == ("Ethos_U55_High_End_Embedded", "Shared_Sram")
    assert target.text == "ethos-u55-128"


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("ethos-u55-128:Shared_Sram", "ethos-u55-128"),
        ("ethos-u55-64:Sram_Only", "ethos-u55-64:Sram_Only"),
        (
            "ethos-u55-64:Sram_Only:Ethos_U55_Deep_Embedded",
            "ethos-u55-64:Ethos_U55_Deep_Embedded:Sram_Only",
        ),
    ],
)
def test_target_has_one_canonical_text(text, canonical):
    assert Target.parse(text).text == canonical
    assert Target.parse(canonical) == Target.parse(text)


@pytest.mark.parametrize("part", PARTS)
def test_every_part_has_a_configuration(part):
    """Clocks are those of vela.ini for the default systems."""
    clock_hz = 500e6 if part.startswith("ethos-u55") else 1e9
    assert configuration(Target.parse(part)).clock_hz == clock_hz


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("ethos-u77-128", "no target 'ethos-u77-128'.*ethos-u55-32.*ethos-u85-2048"),
        ("ethos-u55-512", "no target 'ethos-u55-512'.*ethos-u55-256"),
        ("ethos-u55-128:Huge_Sram", "no memory mode 'Huge_Sram'.*Known: Sram_Only, Shared_Sram"),
        ("ethos-u55-128:Dedicated_Sram", "no memory mode 'Dedicated_Sram'.*Shared_Sram"),
        ("ethos-u55-128:Ethos_U65_Mid_End", "no system configuration.*Ethos_U55_Deep_Embedded"),
        ("ethos-u65-256:Sram_Only:Shared_Sram", "more than one system configuration or memory"),
    ],
)
def test_unknown_target_is_refused_with_the_known_ones(target, message):
    with pytest.raises(RequestError, match=message):
        open_runtime("ethos_u", target=target, dtype="int8")


def test_other_settings_are_refused():
    with pytest.raises(RequestError, match=r"dtype 'float32'.*int8"):
        open_runtime("ethos_u", target="ethos-u55-128")
    with pytest.raises(RequestError, match="threads is 2, but runtime 'ethos_u' has at most 1"):
        open_runtime("ethos_u", target="ethos-u55-128", dtype="int8", threads=2)


def test_basis_names_model_part_system_and_memory_mode():
    runtime = EthosURuntime(target="ethos-u65-256:Ethos_U65_Mid_End", dtype="int8")
    assert runtime.basis == (
        "estimated: vela 5.2.0, compiler cycle model, "
        "ethos-u65-256/Ethos_U65_Mid_End/Dedicated_Sram_384KB"
    )
