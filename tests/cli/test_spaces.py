"""`nas spaces`: what is printed of a space and of a network."""

import json

from nas.cli import networks, space_tables
from nas.cli.architecture import resolve_architecture
from nas.latency import runtime_names, space_kernels
from nas.space import IDENTITY, SearchSpace, Stage, load_space
from nas.space.layers import layer_table
from nas.space.summary import summarise_stages


def test_document_of_a_space_is_exact(capsys):
    space = load_space("mobilenet", image_size=32, classes=7)
    space_tables.print_json(space_tables.space_document(space))
    description = json.loads(capsys.readouterr().out)
    assert description["size"] == space.size
    assert description["image_size"] == 32
    assert description["kernels"].keys() == set(runtime_names()) - {"onnxruntime"}
    assert all(n == len(space_kernels(space, each)) for each, n in description["kernels"].items())
    assert description["macs"]["largest"] == space.largest.macs
    assert description["params"]["smallest"] == space.extreme("params", "smallest").params
    assert [each["name"] for each in description["references"]] == [
        r.name for r in space.references
    ]


def test_the_table_of_a_space_is_described_and_printed(capsys):
    ops = {"skip": IDENTITY, "e3k5": {"expand": 3, "kernel": 5}}
    space = SearchSpace(
        "mine",
        (
            Stage("stem", "conv", (8, 16), stride=2, per_stage={"kernel": 3}),
            Stage(
                "body",
                "inverted_residual",
                24,
                (2, 3),
                2,
                per_block={"op": ops},
                entry="linear_bottleneck",
            ),
            Stage("head", "linear_classifier"),
        ),
        image_size=8,
        channels=1,
        classes=3,
        resolutions=(0.75, 1.0),
    )
    stem, body, head = summarise_stages(space)
    assert stem.width == [8, 16]
    assert (stem.table_stride, stem.stride) == (2, 1)
    assert (body.block, body.entry) == ("inverted_residual", "linear_bottleneck")
    assert body.per_block == {"op": {"skip": None, "e3k5": {"expand": 3, "kernel": 5}}}
    assert body.output_sizes == [(4, 4), (3, 3)]
    assert head.width == []

    space_tables.print_stages(space, [stem, body, head])
    shown = capsys.readouterr().out
    assert "linear_bottleneck, inverted_residual ..." in shown
    assert "2, here 1" in shown
    assert "each block: op skip, e3k5" in shown
    assert "op e3k5: expand 3, kernel 5" in shown
    assert "op skip: the block is left out" in shown
    assert "whole network: resolution 6, 8" in shown


def test_the_layer_table_is_printed_with_published_figures(capsys):
    resolved = resolve_architecture("shufflenet_v1_g3", {"image_size": 64})
    networks.print_network(resolved, layer_table(resolved.architecture.graph))
    shown = capsys.readouterr().out
    assert "shufflenet_v1_g3 (shufflenet_v1) at 64 px" in shown
    assert "conv 1x1 in 3 groups, norm, relu" in shown
    assert "shuffle 3 groups" in shown
    assert "(published: 1,865,728, at 224 px and 1000 classes)" in shown
    assert "avg pool 3x3/2" in shown
