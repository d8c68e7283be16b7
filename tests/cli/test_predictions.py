"""`nas predict`: what it prints."""

import json

import pytest

from nas.figures import Figure
from nas.latency import LatencyTable, open_runtime
from nas.runtimes.tvm.runtime import TvmRuntime
from nas.space import load_space
from tests.capabilities import change
from tests.cli.small_table import (
    HEAD,
    POOL,
    SPACE,
    STEM,
    dispatch,
    kernel,
    uncertain_table,
    write_table,
)
from tests.commands import document
from tests.latency.fake_runtime import FakeRuntime


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    """Return the arguments that name the network of the space `small.py`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.py").write_text(SPACE)
    network = load_space("small.py").largest.to_json()
    (tmp_path / "network.json").write_text(json.dumps(network))
    return ("predict", "network.json", "--space", "small.py", "--table", "mine.jsonl")


def test_prediction_names_uncertain_latencies(arguments, tmp_path, invoke):
    uncertain_table(tmp_path / "mine.jsonl")
    shown = document(invoke(*arguments, "--json"))
    # By hand: 3 + 1 + 2 for the kernels, three launches of 0.5, and a start of 30.
    assert shown["uncorrected_us"] == pytest.approx(37.5)
    assert shown["predicted_us"] == pytest.approx(2 * 6 + 31.5)
    assert shown["dispatch_us"] == pytest.approx(31.5)
    counts = [shown[f"{name}launches"] for name in ("", "uncertain_", "estimated_")]
    assert counts == [3, 1, 1]
    assert shown["basis"] == "estimated: by a model"
    assert shown["uncertain_dispatch"] == ["invocation"]
    assert shown["macs"] == 8 * 64 * 27 + 80
    by_kernel = {row["kernel"]: (row["status"], row["basis"]) for row in shown["kernels"]}
    assert by_kernel == {
        STEM: ("ok", "estimated: by a model"),
        POOL: ("unstable", "measured"),
        HEAD: ("ok", "measured"),
    }
    text = invoke(*arguments).stdout
    for words in (
        "ok, estimated: by a model",
        "predicted 0.0435 ms: 3 kernels (1 uncertain, 1 estimated)",
        "the rest is estimated: by a model",
        "84% of it are launches and the start of the network",
        "expect an error of up to 10%",
        "uncertain dispatch costs: invocation",
        "corrected by the table's calibration on whole networks; without it 0.0375 ms",
    ):
        assert words in text


def test_figures_of_kernels_are_those_of_the_batch(arguments, tmp_path, invoke, monkeypatch):
    """The table has no kernel of single images."""
    change(monkeypatch, TvmRuntime, kernel_figures=(Figure("energy_uj", "energy, uJ"),))
    texts = [each.text for each in FakeRuntime().kernels(load_space("small.py").largest.graph, 4)]
    assert set(texts).isdisjoint((STEM, POOL, HEAD))
    costs = [
        kernel(text, 1.0).model_copy(update={"schedule": {"energy_uj": energy}})
        for text, energy in zip(texts, (40.0, 8.0, 5.0), strict=True)
    ]
    write_table(tmp_path / "mine.jsonl", *dispatch(), *costs)
    shown = document(invoke(*arguments, "--batch", 4, "--json"))
    assert (shown["batch"], shown["figures"]) == (4, {"energy_uj": 53.0})
    assert "\nenergy, uJ: 53\n" in invoke(*arguments, "--batch", 4).stdout


@pytest.mark.slow
def test_missing_kernels_are_timed_on_request(arguments, tmp_path, invoke):
    table = LatencyTable.open_or_create(tmp_path / "mine.jsonl", open_runtime("onnxruntime"))
    done = invoke(*arguments, "--batch", 2)
    assert done.returncode == 1
    kernels = table.runtime.kernels(load_space("small.py").largest.graph)
    assert f"lacks {len(set(kernels))} of the {len(set(kernels))} kernels" in done.stderr
    assert f"nas {' '.join(arguments)} --batch 2 --build" in done.stderr
    assert not table.records("kernel")
    built = document(invoke(*arguments, "--build", "--json"))
    assert built["predicted_us"] > 0
    assert document(invoke(*arguments, "--json")) == built


def test_prediction_needs_all_dispatch_costs(arguments, tmp_path, invoke):
    kernels = [kernel(text, 1.0) for text in (STEM, POOL, HEAD)]
    write_table(tmp_path / "mine.jsonl", *dispatch(["launch"]), *kernels)
    done = invoke(*arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert "has no dispatch overhead" in done.stderr
