"""Exits: a second classifier behind a stage of a network, which can answer easy images early.

The networks of a space with `SearchSpace.exit` have one, the block `pool_classifier` behind the
last block of that stage. `Architecture.graph` is the network without it, which is searched, timed
and shipped. Trainings run `trained_graph`, and a cascade runs the two parts of `with_exit`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from nas.errors import SpaceError
from nas.files.documents import shortened
from nas.graph import Channels, Graph, Op, Shape
from nas.space.architecture import Architecture
from nas.space.blocks.plain import pool_classifier
from nas.space.elastic import Elastic

if TYPE_CHECKING:
    from nas.space.space import SearchSpace

EXIT = "exit"
"""What the names of the slots of an exit start with."""

EXIT_WIDTH = 128
"""Channels of the 1x1 convolution of an exit: half of the fewest of the last classifier of
`mobilenet_32`, with which exits were compared with cascades."""


class ExitNetwork(NamedTuple):
    """A network with an exit behind a stage.

    Attributes:
        whole: both classifiers; the output is the classes of the exit, then those of the last.
        prefix: from the image to the exit.
        rest: from the output of the stage to the last classifier.
        source: position in `prefix` of the op whose output `rest` reads.
    """

    whole: Graph
    prefix: Graph
    rest: Graph
    source: int


def require_exit(space: SearchSpace) -> None:
    """Raise SpaceError if a space has an exit behind no stage, or behind the first or last one."""
    names = [stage.name for stage in space.stages]
    if space.exit not in (None, *names[1:-1]):
        raise SpaceError(
            f"Space {space.name}: exit is {shortened(space.exit)}.",
            remedy="Name a stage that is neither the first nor the last one: "
            f"{', '.join(names[1:-1]) or 'this space has none'}.",
        )
    if space.exit is not None and EXIT in names:
        raise SpaceError(
            f"Space {space.name} has an exit and a stage that is called {EXIT}.",
            remedy="Give the stage another name.",
        )


def with_exit(architecture: Architecture) -> ExitNetwork:
    """Return a network with the exit of its space, which must have one.

    If the network leaves all blocks of the stage out, the exit stands behind the block before.
    """
    space, graph = architecture.space, architecture.graph
    names = [stage.name for stage in space.stages]
    before = names[: names.index(space.exit) + 1] if space.exit else []
    blocks = [block for block, name in graph.blocks if name.split(".")[0] in before]
    source = sum(len(block.graph.ops) - 1 for block in blocks)
    shape = graph.ops[source].shape
    branch = _exit_graph(space, shape, blocks[-1].channels)
    ops = _appended(graph.ops, branch, source)
    ends = (len(ops) - 1, len(graph.ops) - 1)
    both = Op("concat", ends, (2 * space.classes, 1, 1))
    behind = [
        op._replace(inputs=tuple(each - source for each in op.inputs))
        for op in graph.ops[source + 1 :]
    ]
    return ExitNetwork(
        whole=Graph((*ops, both)),
        prefix=Graph(_appended(graph.ops[: source + 1], branch, source)),
        rest=Graph((Op("input", (), shape), *behind)),
        source=source,
    )


def trained_graph(architecture: Architecture) -> Graph:
    """Return what trainings run: the network with both classifiers if its space has an exit."""
    if architecture.space.exit is None:
        return architecture.graph
    return with_exit(architecture).whole


def exit_shapes(space: SearchSpace) -> set[Shape]:
    """Return the shapes of the tensors that exits read; none if the space has no exit."""
    names = [stage.name for stage in space.stages]
    return space.automaton.output_shapes()[names.index(space.exit)] if space.exit else set()


def exit_graphs(
    space: SearchSpace, inputs: Iterator[tuple[Shape, Channels]] | None = None
) -> Iterator[Graph]:
    """Iterate over the exits of a space by themselves.

    Args:
        space: the space.
        inputs: the tensors that they read; by default one for each of `exit_shapes`.
    """
    if inputs is None:
        inputs = ((each, Channels.prefix(each[0], each[0])) for each in exit_shapes(space))
    return (_exit_graph(space, *each) for each in inputs)


def _exit_graph(space: SearchSpace, shape: Shape, channels: Channels) -> Graph:
    """Return the exit behind a tensor, which is the input of the graph."""
    build = space.new_builder(shape, channels)
    pool_classifier(build, build.input, EXIT, width=Elastic.of(EXIT_WIDTH))
    return build.graph()


def _appended(ops: Sequence[Op], branch: Graph, source: int) -> tuple[Op, ...]:
    """Return ops with those of a graph behind them, whose input is the op at `source`."""
    offset = len(ops) - 1
    moved = [
        op._replace(inputs=tuple(source if each == 0 else offset + each for each in op.inputs))
        for op in branch.ops[1:]
    ]
    return (*ops, *moved)
