"""`CompiledStage`: a stage with its choices named, its blocks looked up and its graphs cached."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from typing import TYPE_CHECKING, Any

from nas.errors import SpaceError, printable
from nas.files.documents import shortened
from nas.files.names import require_identifier
from nas.graph import Channels, Graph, Shape
from nas.space.architecture import Value
from nas.space.block_graph import BlockGraph
from nas.space.choice import Choice, Options, options_left, size_options
from nas.space.elastic import MAX_SIZE, Elastic
from nas.space.stage import BlockSelection, Stage, block_keywords, source_file
from nas.space.user_code import user_code

if TYPE_CHECKING:
    from nas.space.space import SearchSpace

MAX_DEPTH = 1000
"""Most blocks of a stage: published networks have fewer than a hundred."""

ChosenOptions = tuple[Any, ...]
"""One option for each of a list of choices, in their order."""

InputTensor = tuple[Shape, Channels]
"""The input of a block: its shape, and which channels of its widest version these are."""


class CompiledStage:
    """A stage of a space, ready to lower.

    Attributes:
        stage: the row of the table.
        names: the prefix of the slot names of each block.
        depths: the options of the depth.
        depth_name: the name of the depth's choice.
        network_choices: the network-wide choices that the stage depends on.
        stage_choices: the choices made once for all blocks of the stage.
        block_choices: for each block, the choices made for it alone.
        stride_choice: the network-wide choice that decides the stride; None if the stride is fixed.
    """

    def __init__(self, space: SearchSpace, stage: Stage) -> None:
        """Check and compile a row of a space's table.

        Raises SpaceError, naming the stage and what would be accepted.
        """
        self.stage, self._space = stage, space
        self.where = f"Space {space.name}, stage {stage.name}"
        require_mapping(stage.per_stage, f"{self.where}: per_stage")
        require_mapping(stage.per_block, f"{self.where}: per_block")
        for key in (*stage.per_stage, *stage.per_block):
            require_identifier(key, self.where, SpaceError)
        self.depth_name = f"{stage.name}.depth"
        depths = size_options(self.where, "depth", stage.depth, MAX_DEPTH)
        self.depths = options_left(self.where, "depth", depths, space.narrowed.get(self.depth_name))
        self.stage_choices = self._make_stage_choices()
        body = BlockSelection(self.where, stage.block, stage.per_stage, stage.per_block)
        entry = body
        if stage.entry is not None:
            entry = BlockSelection(self.where, stage.entry, stage.per_stage, stage.per_block)
        self._blocks = [entry, *[body] * (max(self.depths) - 1)]
        self.block_choices = [self._make_block_choices(at) for at in range(max(self.depths))]
        self.stride_choice = self._find_stride_choice()
        known = entry.keywords | self._blocks[-1].keywords
        self.network_choices = [
            choice
            for choice in space.network_choices
            if choice is self.stride_choice
            or any(known & arguments.keys() for arguments in choice.all_arguments())
        ]
        self._network_positions = [
            space.network_choices.index(each) for each in self.network_choices
        ]
        self._all_choices = [
            [*self.network_choices, *self.stage_choices, *own] for own in self.block_choices
        ]
        self._check_arguments()
        self._ranges = [self._argument_ranges(choices) for choices in self._all_choices]
        # Blocks of one kind share their graphs. A narrowed choice gives a block other ranges.
        kinds = [(position == 0, ranges) for position, ranges in enumerate(self._ranges)]
        self._kinds = [kinds.index(kind) for kind in kinds]
        # Slots have the same names in a narrowed space, so the depth of the table counts.
        is_single = max(depths) == 1
        self.names = [
            stage.name if is_single else f"{stage.name}.{position}"
            for position in range(len(self.block_choices))
        ]
        self._active_parameters = {
            depth: tuple(
                (name, options)
                for name, options in self.parameters()
                if name not in {each.name for own in self.block_choices[depth:] for each in own}
            )
            for depth in self.depths
        }
        self._block_graphs: dict[Any, BlockGraph | None] = {}

    # Choices

    def parameters(self) -> Iterator[tuple[str, tuple[Value, ...]]]:
        """Iterate over the names of the stage's choices and their options, in the table's order."""
        yield from _named_options(c for c in self.stage_choices if c.argument == "width")
        if len(self.depths) > 1:
            yield self.depth_name, self.depths
        yield from _named_options(c for c in self.stage_choices if c.argument != "width")
        for own in self.block_choices:
            yield from _named_options(own)

    @property
    def choice_names(self) -> list[str]:
        """The names of all choices, those that have a single option among them."""
        own = [choice for choices in self.block_choices for choice in choices]
        return [self.depth_name, *(choice.name for choice in (*self.stage_choices, *own))]

    def active_parameters(
        self, choices: Mapping[str, Any]
    ) -> tuple[tuple[str, tuple[Value, ...]], ...]:
        """Return the parameters that the network uses at the depth that `choices` has."""
        return self._active_parameters[self.depth(choices)]

    def block_options(self) -> dict[str, Any]:
        """Return the options of each choice that blocks make, for all blocks of the stage together.

        The result is plain data, see `Choice.to_json`. The first block of a stage can have other
        choices than the last; the result has those of the last.
        """
        merged = {choice.argument: choice.to_json() for choice in self.block_choices[-1]}
        for choice in [choice for own in self.block_choices[:-1] for choice in own]:
            known, own_options = merged.get(choice.argument), choice.to_json()
            if isinstance(known, dict):
                merged[choice.argument] = known | own_options
            elif known is not None:
                known += [option for option in own_options if option not in known]
        return merged

    def count_combinations(self) -> int:
        """Return the number of combinations of used options, whatever networks they make."""
        shared = math.prod(len(choice.options) for choice in self.stage_choices)
        own = [math.prod(len(choice.options) for choice in own) for own in self.block_choices]
        return shared * sum(math.prod(own[:depth]) for depth in self.depths)

    def depth(self, choices: Mapping[str, Any]) -> int:
        """Return the number of blocks that `choices` give the stage, or else the largest."""
        if len(self.depths) == 1:
            return self.depths[0]
        depth = choices.get(self.depth_name)
        return depth if depth in self.depths else max(self.depths)

    def table_stride(self, network_options: Mapping[str, Value]) -> int:
        """Return the stride in the table, for network-wide options by name."""
        stride = self.stage.stride
        if isinstance(stride, int):
            return stride
        assert self.stride_choice is not None
        return stride[network_options[self.stride_choice.name]]

    def relevant_options(self, network_options: ChosenOptions) -> ChosenOptions:
        """Return those of all network-wide options that the stage depends on."""
        return tuple([network_options[position] for position in self._network_positions])

    # Lowering

    def lower(
        self, block: BlockGraph, choices: Mapping[str, Any], stride: int
    ) -> Iterator[tuple[BlockGraph, str]]:
        """Iterate over the stage's block graphs, each with the prefix of its slot names.

        Args:
            block: the last block graph before the stage.
            choices: the options by name.
            stride: of the first block.
        """
        for position in range(self.depth(choices)):
            options = tuple([each.selected(choices) for each in self._all_choices[position]])
            x = block.shape, block.channels
            following = self.block_graph(x, position, options, stride)
            if following is not None:
                yield following, self.names[position]
                block = following

    def block_graph(
        self, x: InputTensor, position: int, options: ChosenOptions, stride: int
    ) -> BlockGraph | None:
        """Return the graph of the block at `position`; None if it is left out or adds nothing.

        Args:
            x: input of the block.
            position: in the stage.
            options: of `network_choices`, `stage_choices` and `block_choices[position]`, in this
                order.
            stride: of the stage.
        """
        key = (x, self._kinds[position], options, stride if position == 0 else 1)
        if key not in self._block_graphs:
            self._block_graphs[key] = self._build(x, position, options, key[-1])
        return self._block_graphs[key]

    def block_graphs_with_slots(
        self,
        inputs: Mapping[int, InputTensor],
        outputs: dict[int, InputTensor],
        network_options: ChosenOptions,
        stride: int,
    ) -> Iterator[Graph]:
        """Iterate over the stage's blocks with their slots; see `Lowering.block_graphs_with_slots`.

        Args:
            inputs: a tensor that can enter the stage for each width of the widest version.
            outputs: receives a tensor that can leave the stage for each width of the widest one.
            network_options: of `network_choices`.
            stride: of the stage.
        """
        for shared in product(*[choice.options for choice in self.stage_choices]):
            arriving = inputs
            for position, own in enumerate(self.block_choices):
                leaving: dict[int, InputTensor] = {}
                own_options = product(*[choice.options for choice in own])
                for x, chosen in product(arriving.values(), own_options):
                    options = (*network_options, *shared, *chosen)
                    block = self.block_graph(x, position, options, stride)
                    output = x if block is None else (block.shape, block.channels)
                    leaving.setdefault(output[1].extent, output)
                    if block is not None:
                        input_op = block.graph.ops[0]
                        yield Graph((input_op, *block.ops_at(0, self.names[position])))
                arriving = leaving
                if position + 1 in self.depths:
                    outputs.update({k: v for k, v in leaving.items() if k not in outputs})

    def to_json(self) -> list[Any]:
        """Return the stage as plain data, for the space's digest."""
        stage = self.stage
        stride = stage.stride if isinstance(stage.stride, int) else list(stage.stride.items())
        choices = [
            [choice.argument, choice.to_json()]
            for choice in (*self.stage_choices, *self.block_choices[-1])
        ]
        blocks = [self._blocks[0].to_json(), self._blocks[-1].to_json()]
        return [stage.name, blocks, list(self.depths), stride, choices]

    def _build(
        self, x: InputTensor, position: int, options: ChosenOptions, stride: int
    ) -> BlockGraph | None:
        shape, channels = x
        arguments: dict[str, Any] = {}
        is_left_out = False
        for choice, option in zip(self._all_choices[position], options, strict=True):
            added = choice.arguments(option)
            is_left_out |= added is None
            arguments.update(added or {})
        if is_left_out:
            self._check_identity(shape, position, arguments.get("width"), stride)
            return None
        block, name = self._blocks[position].select(arguments, self.stage.name)
        known = block_keywords(block).known
        ranges = self._ranges[position]
        given = {
            key: Elastic(value, *ranges[key]) if key in ranges else value
            for key, value in arguments.items()
            if key in known
        }
        if "stride" in known:
            given["stride"] = stride
        build = self._space.new_builder(shape, channels)
        try:
            with user_code(source_file(block), f"block {block.__name__}"):
                output = block(build, build.input, name, **given)
                graph = BlockGraph(build.graph(), output, self.stage.name)
            return graph if graph.op_sequence else None
        except SpaceError as error:
            chosen = ", ".join(
                f"{key} {printable(str(getattr(value, '__name__', value)))}"
                for key, value in arguments.items()
            )
            raise SpaceError(
                f"{self.where}: {error.message} (Block {block.__name__} with "
                f"{chosen or 'no choices'} on {'x'.join(map(str, shape))}.)",
                remedy=error.remedy,
            ) from error

    def _check_identity(self, shape: Shape, position: int, width: int | None, stride: int) -> None:
        """Raise SpaceError for a block that changes the shape, and so cannot be left out."""
        if stride == 1 and width in (None, shape[0]):
            return
        raise SpaceError(
            f"{self.where}: block {position} cannot be left out: it turns {shape[0]} channels "
            f"into {width or shape[0]}, with stride {stride}.",
            remedy="Give the stage an `entry` block, which is never left out.",
        )

    # Reading the table

    def _make_stage_choices(self) -> list[Choice]:
        given = dict(self.stage.per_stage)
        if self.stage.width != ():
            widths = size_options(self.where, "width", self.stage.width, MAX_SIZE)
            given = {"width": widths, **given}
        return [
            self._choice(f"{self.stage.name}.{key}", key, options) for key, options in given.items()
        ]

    def _make_block_choices(self, position: int) -> list[Choice]:
        """Return the choices that the block at a position takes.

        The first block of a stage cannot be left out where it has a stride or is an entry block.
        """
        choices = []
        is_required = position == 0 and (self.stage.entry is not None or self.stage.stride != 1)
        for key, options in self.stage.per_block.items():
            if is_required and isinstance(options, Mapping):
                options = {name: bundle for name, bundle in options.items() if bundle is not None}
            choice = self._choice(f"{self.stage.name}.{position}.{key}", key, options)
            takes = self._blocks[position].keywords | {"block"}
            has_identity = any(choice.arguments(option) is None for option in choice.options)
            if has_identity or any(takes & each.keys() for each in choice.all_arguments()):
                choices.append(choice)
        return choices

    def _choice(self, name: str, argument: str, options: Options) -> Choice:
        return Choice(self.where, name, argument, options, self._space.narrowed.get(name))

    def _find_stride_choice(self) -> Choice | None:
        stride, network_choices = self.stage.stride, self._space.network_choices
        strides = [stride] if isinstance(stride, int) else list(stride.values())
        if any(each not in (1, 2) for each in strides):
            raise SpaceError(f"{self.where}: stride is {shortened(stride)}.", remedy="Use 1 or 2.")
        if isinstance(stride, int):
            return None
        for choice in network_choices:
            if set(choice.table_options) == set(stride):
                return choice
        known = ", ".join(
            f"{choice.name} {list(choice.table_options)}" for choice in network_choices
        )
        raise SpaceError(
            f"{self.where}: no network-wide choice has exactly the options {list(stride)} that "
            "its strides are given for.",
            remedy=f"There are: {known}.",
        )

    def _argument_ranges(self, choices: Iterable[Choice]) -> dict[str, tuple[float, float]]:
        """Return the smallest and the largest value of each numeric argument of a block."""
        values: dict[str, list[float]] = {}
        for choice in choices:
            for arguments in choice.all_arguments():
                for key, value in arguments.items():
                    if isinstance(value, int | float):
                        values.setdefault(key, []).append(value)
        return {key: (min(each), max(each)) for key, each in values.items()}

    def _check_arguments(self) -> None:
        """Raise SpaceError for a block without a required argument or an argument of no block."""
        known = self._blocks[0].keywords | self._blocks[-1].keywords
        own = [choice for choices in self.block_choices for choice in choices]
        for choice in (*self.stage_choices, *own):
            for arguments in choice.all_arguments():
                self._require_taken(set(arguments) - known - {"block"}, known)
        for key in set(self.stage.per_block) - {choice.argument for choice in own}:
            self._require_taken({key}, known)
        for position in {0, len(self.block_choices) - 1}:
            all_arguments = [list(each.all_arguments()) for each in self._all_choices[position]]
            for bundles in product(*all_arguments):
                merged = {key: value for bundle in bundles for key, value in bundle.items()}
                block, _ = self._blocks[position].select(merged, "")
                missing = block_keywords(block).required - set(merged) - {"stride"}
                if missing:
                    raise SpaceError(
                        f"{self.where}: block {block.__name__} needs {', '.join(sorted(missing))}."
                    )

    def _require_taken(self, unknown: set[str], known: frozenset[str]) -> None:
        if unknown:
            raise SpaceError(
                f"{self.where}: no block takes {', '.join(sorted(unknown))}.",
                remedy=f"Known here: {', '.join(sorted(known - {'stride'})) or 'none'}.",
            )


def _named_options(choices: Iterable[Choice]) -> Iterator[tuple[str, tuple[Value, ...]]]:
    for choice in choices:
        if choice.has_alternatives:
            yield choice.name, choice.options


def require_mapping(value: object, what: str) -> None:
    """Raise SpaceError unless a value of the table is a mapping; the message starts with `what`."""
    if not isinstance(value, Mapping):
        raise SpaceError(f"{what} is {shortened(value)}.", remedy="Give a mapping.")
