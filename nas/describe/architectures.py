"""One architecture: what ARCH on the command line stands for, and the network layer by layer."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from pydantic import RootModel

from nas import console
from nas.documents import Format, shortened
from nas.errors import RequestError, SpaceError, printable
from nas.formatting import format_bytes, format_count
from nas.graph import ACTIVATIONS, POOLING_KINDS, Graph, Op, is_digest_prefix
from nas.space import Architecture, Reference, SearchSpace, load_definition, load_space
from nas.space.architecture import parse_record
from nas.space.block_graph import CompositeGraph
from nas.space.library import find_reference, space_names

MAX_FILE_BYTES = 4 << 20
"""Largest file of one architecture: that of the largest network, layer by layer, has 60 kB."""

_FILE = Format(
    RootModel[dict[str, Any]],
    "an architecture",
    RequestError,
    'Give a JSON file with {"space": name, "choices": {choice: value, ...}}.',
    MAX_FILE_BYTES,
)

_FUSED_KINDS = ACTIVATIONS | {"norm"}
"""Op kinds that stand in the line of the op before them."""


# What ARCH stands for


@dataclass(frozen=True)
class ResolvedArchitecture:
    """An architecture in a space adapted to the requested sizes, and its row if it is published."""

    architecture: Architecture
    reference: Reference | None = None


def resolve_architecture(
    arch: str, sizes: Mapping[str, int | None], space: str | None = None
) -> ResolvedArchitecture:
    """Return the architecture that ARCH on the command line stands for.

    Args:
        arch: the path of an architecture's JSON, the name of a reference network, or `RUN:ID` with
            the start of a digest. `RUN:ID` runs the run's copy of the space's file, which is code:
            name only runs that you trust.
        sizes: `image_size`, `channels` and `classes`, each None where it is not requested. If none
            is requested, a reference network is as it was published, and a member of a run as the
            run had it.
        space: the name or file of the space, for an architecture of a space that does not ship.

    Raises RequestError for what is none of these or belongs to another space.
    """
    if os.path.isfile(arch):
        return _from_file(Path(arch), sizes, space)
    folder, colon, prefix = arch.rpartition(":")
    if colon and os.path.isdir(folder):
        return _from_run(Path(folder), prefix, sizes)
    return _from_reference(arch, sizes, space)


def resolve_architecture_of_run(
    arch: str, run: Path, sizes: Mapping[str, int]
) -> ResolvedArchitecture:
    """Return the architecture that ARCH stands for where a run is given beside it.

    Args:
        arch: as for `resolve_architecture`, or the start of a digest in the run.
        run: folder of the run, which has copies of its spaces; see `resolve_architecture`.
        sizes: `image_size`, `channels` and `classes` of the run.

    Raises RequestError as `resolve_architecture` does.
    """
    if os.path.isfile(arch):
        copy = _space_copy(run, read_architecture(Path(arch))["space"])
        return resolve_architecture(arch, sizes, str(copy) if copy.is_file() else None)
    if (run / "trials.csv").is_file() and is_digest_prefix(arch):
        return resolve_architecture(f"{run}:{arch}", sizes)
    return resolve_architecture(arch, sizes)


def read_architecture(path: Path) -> dict[str, Any]:
    """Return the `space` and `choices` in a JSON file, not yet compared with those of the space.

    The file holds an architecture, or a record with one under the key `architecture`, such as a
    front member or what `nas spaces --arch` printed.

    Raises RequestError, naming the file, for any other file.
    """
    return _parse(_FILE.content(path), str(path))


def _parse(content: bytes, source: str) -> dict[str, Any]:
    record: Any = _FILE.parse(content, source).root
    try:
        # A repeated key has two values, and nothing says which one is meant.
        json.loads(content, object_pairs_hook=_require_distinct_keys)
    except ValueError as error:
        raise _FILE.failure(f"{source} is not an architecture: {printable(str(error))}") from None
    if "choices" not in record:
        record = record.get("architecture", record)
    try:
        space, choices = parse_record(record)
    except RequestError as error:
        raise RequestError(f"{source}: {error.message}", remedy=error.remedy) from None
    return {"space": space, "choices": dict(choices)}


def _require_distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {shortened(repeated)} stands twice")
    return record


def _from_file(
    path: Path, sizes: Mapping[str, int | None], space: str | None
) -> ResolvedArchitecture:
    record = read_architecture(path)
    name = record["space"]
    if space is None and name not in space_names():
        raise RequestError(
            f"{path} is of space {name!r}, which is not one that ships.",
            remedy="Say where the space is: nas predict --space FILE.py, or nas spaces FILE.py.",
        )
    return _in_space(load_definition(space or name).adapt(**sizes), record, str(path))


def _from_run(folder: Path, prefix: str, sizes: Mapping[str, int | None]) -> ResolvedArchitecture:
    from nas.run import candidates
    from nas.run.record import read_run

    trials = folder / "trials.csv"
    rows = candidates.read(trials)
    rows = rows[rows["digest"].str.startswith(prefix, na=False)]
    if not prefix or len(rows) != 1:
        raise RequestError(
            f"{len(rows)} architectures of {folder} have an id that starts with "
            f"{shortened(prefix)}.",
            remedy="Give the start of one digest in trials.csv.",
        )
    text = str(rows.iloc[0]["architecture"])
    record = _parse(text.encode(errors="replace"), f"{trials}, {prefix}")
    settings = read_run(folder).settings
    if settings is None:
        raise RequestError(
            f"The job in {folder} has only begun: it does not say yet what its images are.",
            remedy="Wait until it does, or run it again.",
        )
    copy = _space_copy(folder, record["space"])
    if not copy.is_file():
        raise RequestError(f"{folder} does not hold the space {record['space']}.")
    space = load_space(copy, **settings.sizes).adapt(**sizes)
    return _in_space(space, record, str(trials))


def _from_reference(
    name: str, sizes: Mapping[str, int | None], space: str | None
) -> ResolvedArchitecture:
    holder = None if space is None else load_definition(space)
    try:
        if holder is None:
            holder, reference = find_reference(name)
        else:
            reference = holder.reference_row(name)
    except SpaceError as error:
        there_is = "a folder or device" if os.path.exists(name) else "no file and no run"
        raise RequestError(
            f"{error.message} There is {there_is} of this name.",
            remedy=f"{error.remedy} Or give a JSON file, or RUN:ID.",
        ) from error
    if any(size is not None for size in sizes.values()):
        return ResolvedArchitecture(holder.adapt(**sizes).reference(name), reference)
    return ResolvedArchitecture(holder.published(name), reference)


def _space_copy(run: Path, name: str) -> Path:
    """Return the path of a run's copy of a space's file, the only code of a run that is loaded."""
    return run / "spaces" / f"{name}.py"


def _in_space(space: SearchSpace, record: Mapping[str, Any], source: str) -> ResolvedArchitecture:
    try:
        return ResolvedArchitecture(space.from_json(record))
    except SpaceError as error:
        raise RequestError(f"{source}: {error.message}", remedy=error.remedy) from error


# Layer by layer


@dataclass
class Layer:
    """One line of the layer table: an op with the norm and the activations behind it.

    Attributes:
        index: of the line.
        name: of the weights, or of the block and the kind of op.
        stage: name of the stage.
        operation: the op in words.
        kind, kernel, stride, padding, groups: see `nas.graph.Op`.
        output: shape of the result.
        macs: multiply-accumulates for one image.
        params: trainable parameters, including those of the norm.
        activation_bytes: size of the result as float32, for one image.
        fused: the bias, the norm and the activations in this line.
    """

    index: int
    name: str
    stage: str
    operation: str
    kind: str
    kernel: int
    stride: int
    padding: int
    groups: int
    output: tuple[int, int, int]
    macs: int
    params: int
    activation_bytes: int
    fused: list[str] = field(default_factory=list)


def layers(graph: CompositeGraph) -> list[Layer]:
    """Return the layers of a network, its input first; their counts add up to the graph's."""
    return _layers_and_owners(graph)[0]


def peak_layer(graph: CompositeGraph) -> int:
    """Return the index of the first layer during which the peak memory is in use."""
    _, layer_of = _layers_and_owners(graph)
    peak = graph.peak_memory_bytes
    return next(layer_of[at] for at in range(len(graph.ops)) if _peak_until(graph, at) == peak)


def _peak_until(graph: Graph, position: int) -> int:
    """Return the peak memory of the ops up to a position, counted as in the whole graph."""
    read_later = {source for op in graph.ops[position + 1 :] for source in op.inputs}
    # An op with an empty result keeps alive what the ops that are cut off still read.
    alive = tuple(sorted(source for source in read_later if source <= position))
    reader = Op("concat", alive, (0, 0, 0))
    return Graph((*graph.ops[: position + 1], reader)).peak_memory_bytes


def _layers_and_owners(graph: CompositeGraph) -> tuple[list[Layer], list[int]]:
    """Return the layers, and for each op the index of the layer that it is part of."""
    result, layer_of = [_layer(graph, 0, 0, "input")], [0]
    start = 1
    for block, name in graph.blocks:
        positions = range(start, start + len(block.graph.ops) - 1)
        start = positions.stop
        for position in positions:
            op = graph.ops[position]
            if op.kind in _FUSED_KINDS and op.inputs[0] in positions:
                (source,) = op.inputs
                if len(graph.consumers[source]) == 1:
                    layer = result[layer_of[source]]
                    layer.fused.append(op.kind)
                    layer.params += graph.op_params(op)
                    layer_of.append(layer.index)
                    continue
            layer_of.append(len(result))
            result.append(_layer(graph, position, len(result), name))
    return result, layer_of


def _layer(graph: Graph, position: int, index: int, block: str) -> Layer:
    op = graph.ops[position]
    c, h, w = op.shape
    name = op.slot.name if op.slot is not None else f"{block}.{op.kind}"
    return Layer(
        index=index,
        name=name if position else block,
        stage=block.split(".")[0] if position else "",
        operation=_operation(graph, op),
        kind=op.kind,
        kernel=op.kernel,
        stride=op.stride,
        padding=op.padding,
        groups=op.groups,
        output=op.shape,
        macs=graph.op_macs(op),
        params=graph.op_params(op),
        activation_bytes=4 * c * h * w,
        fused=["bias"] if op.bias else [],
    )


def _operation(graph: Graph, op: Op) -> str:
    """Return an op in words, such as `conv 3x3/2`, `depthwise 5x5` or `conv 1x1 in 4 groups`."""
    if op.kind == "slice":
        return f"channels {op.start} to {op.start + op.shape[0]}"
    if op.kind == "shuffle":
        return f"shuffle {op.groups} groups"
    if op.kind != "conv" and op.kind not in POOLING_KINDS:
        return op.kind.replace("_", " ")
    is_depthwise = 1 < op.groups == op.shape[0] == graph.input_channels(op)
    parts = ["depthwise" if is_depthwise else op.kind.replace("_", " ")]
    parts.append(f"{op.kernel}x{op.kernel}" + (f"/{op.stride}" if op.stride > 1 else ""))
    if op.groups > 1 and not is_depthwise:
        parts.append(f"in {op.groups} groups")
    if op.kernel > 1 and not op.padding:
        parts.append("unpadded")
    return " ".join(parts)


def describe_architecture(resolved: ResolvedArchitecture) -> dict[str, Any]:
    """Return what `nas spaces --arch` shows; `published` are the figures of a reference network."""
    architecture, reference = resolved.architecture, resolved.reference
    space, graph = architecture.space, architecture.graph
    return {
        "space": space.name,
        "architecture": architecture.to_json(),
        "settings": space.settings,
        "norm": space.norm,
        "macs": graph.macs,
        "params": graph.params,
        "peak_memory_bytes": graph.peak_memory_bytes,
        "peak_layer": peak_layer(graph),
        "digest": graph.digest,
        "published": None
        if reference is None
        else {
            "name": reference.name,
            "macs": reference.macs,
            "params": reference.params,
            "image_size": reference.image_size,
            "source": reference.source,
        },
        "layers": [asdict(layer) for layer in layers(graph)],
    }


def show_architecture(description: dict[str, Any]) -> None:
    """Print the layer table with sums by stage, then the totals beside the published figures."""
    settings, published = description["settings"], description["published"]
    title = description["space"]
    if published is not None:
        title = f"{published['name']} ({title})"
    console.say(
        f"{title} at {settings['image_size']} px, {settings['channels']} channels, "
        f"{settings['classes']} classes{'' if description['norm'] else ', without norms'}"
    )
    console.print_table(
        ["#", "layer", "operation", "output", "MACs", "parameters", "activations"],
        _table_rows(description["layers"]),
        left=("layer", "operation"),
    )
    peak = description["layers"][description["peak_layer"]]
    console.say(f"{description['macs']:,} MACs{_published_figure(published, 'macs')}")
    console.say(f"{description['params']:,} parameters{_published_figure(published, 'params')}")
    console.say(
        f"peak memory {format_bytes(description['peak_memory_bytes'])} of float32 activations, "
        f"at layer {peak['index']} ({peak['name']})"
    )
    console.say(f"digest {description['digest']}")
    if published is not None:
        console.say(f"source: {published['source']}")


def _table_rows(all_layers: list[dict[str, Any]]) -> Iterator[Sequence[Any] | None]:
    for stage, grouped in groupby(all_layers, key=lambda layer: layer["stage"]):
        own = list(grouped)
        if stage:
            yield None
        if len(own) > 1:
            macs, params = (sum(layer[key] for layer in own) for key in ("macs", "params"))
            output = _shape_text(own[-1]["output"])
            yield ("", stage, "", output, format_count(macs), f"{params:,}", "")
        for layer in own:
            name = layer["name"].removeprefix(f"{stage}.")
            yield (
                layer["index"],
                f"  {name}" if stage and name != stage else name,
                ", ".join([layer["operation"], *layer["fused"]]),
                _shape_text(layer["output"]),
                format_count(layer["macs"]) if layer["macs"] else "",
                f"{layer['params']:,}" if layer["params"] else "",
                format_bytes(layer["activation_bytes"]),
            )


def _shape_text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _published_figure(published: dict[str, Any] | None, key: str) -> str:
    """Return a published figure, to be printed behind a count."""
    if published is None or published[key] is None:
        return ""
    figure = published[key]
    text = f"{figure:,}" if isinstance(figure, int) else format_count(figure)
    return f" (published: {text}, at {published['image_size']} px and 1000 classes)"
