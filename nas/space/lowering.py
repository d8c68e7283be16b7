"""`Lowering`: the walk through the stages of a space from choices to block graphs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

from nas.errors import SpaceError
from nas.graph import DEFAULT_DTYPE, Channels, Graph, Op, Shape
from nas.space.architecture import Value
from nas.space.block_graph import BlockGraph, OpSequence, input_op_id
from nas.space.compiled_stage import ChosenOptions, InputTensor
from nas.space.exits import exit_graphs

if TYPE_CHECKING:
    from nas.space.space import SearchSpace


class Lowering:
    """Turns the choices of a space into block graphs, one stage after another.

    Attributes:
        stages: the stages of the space.
        network_choices: the choices made once for the whole network.
    """

    def __init__(self, space: SearchSpace) -> None:
        self._space = space
        self.stages, self.network_choices = space.compiled_stages, space.network_choices
        self._input_blocks: dict[Shape, BlockGraph] = {}
        self._strides: dict[ChosenOptions, tuple[int, ...]] = {}

    def walk(self, choices: Mapping[str, Any]) -> tuple[Op, list[tuple[BlockGraph, str]]]:
        """Return the input op, and the block graphs with the prefixes of their slots.

        Raises:
            KeyError: a choice is missing.
            SpaceError: the choices make no network.
        """
        network_options = tuple([choice.selected(choices) for choice in self.network_choices])
        input_op = self.input_op_at(network_options)
        last = self._input_block(input_op.shape)
        blocks: list[tuple[BlockGraph, str]] = []
        strides = self.strides_for(network_options)
        for stage, stride in zip(self.stages, strides, strict=True):
            for block, name in stage.lower(last, choices, stride):
                blocks.append((block, name))
                last = block
        return input_op, blocks

    def op_sequence(self, choices: Mapping[str, Any]) -> OpSequence:
        """Return the ops of the network that choices make. Raises what `walk` raises."""
        input_op, blocks = self.walk(choices)
        ops = [input_op_id(input_op)]
        for block, _ in blocks:
            ops += block.op_sequence
        return tuple(ops)

    def input_op_at(self, network_options: ChosenOptions) -> Op:
        """Return the network's input at the resolution and the dtype of network-wide options."""
        channels, size, _ = self._space.input_shape
        dtype = DEFAULT_DTYPE
        for choice, option in zip(self.network_choices, network_options, strict=True):
            if choice.argument == "resolution":
                size = int(option)
            elif choice.argument == "dtype":
                dtype = str(option)
        return Op("input", (), (channels, size, size), dtype=dtype)

    def strides_for(self, network_options: ChosenOptions) -> tuple[int, ...]:
        """Return the stride of each stage for network-wide options; see `SearchSpace.strides`.

        A network has the same strides in a space that is narrowed: they follow from the whole one.
        """
        if self._space.narrowed:
            return self._space.whole.strides_for(network_options)
        if network_options not in self._strides:
            chosen = {
                choice.name: option
                for choice, option in zip(self.network_choices, network_options, strict=True)
            }
            strides = [stage.table_stride(chosen) for stage in self.stages]
            for index in range(len(strides)):
                if self._last_map_size(chosen, strides) >= self._space.smallest_map:
                    break
                strides[index] = 1
            self._strides[network_options] = tuple(strides)
        return self._strides[network_options]

    def _last_map_size(self, network_options: Mapping[str, Value], strides: Sequence[int]) -> int:
        """Return the height in pixels of what reaches the last stage; 0 where a block is too large.

        The network is the one that shrinks its input most: the shallowest with the largest kernels.
        """
        choices: dict[str, Value] = {}
        for name, options in self._space.parameters.items():
            if isinstance(options[0], str):
                choices[name] = options[0]
            else:
                choices[name] = min(options) if name.endswith(".depth") else max(options)
        choices |= network_options
        last = self._input_block(self._space.input_shape)
        try:
            for stage, stride in list(zip(self.stages, strides, strict=True))[:-1]:
                for block, _ in stage.lower(last, choices, stride):
                    last = block
        except SpaceError:
            return 0
        return min(last.shape[1:])

    def _input_block(self, shape: Shape) -> BlockGraph:
        if shape not in self._input_blocks:
            builder = self._space.new_builder(shape, Channels.prefix(shape[0], shape[0]))
            self._input_blocks[shape] = BlockGraph.of_input(builder)
        return self._input_blocks[shape]

    def block_graphs_with_slots(self) -> Iterator[Graph]:
        """Iterate over blocks with the slots of the space; together they use every slot.

        The size of the widest version of a slot depends on the table and on the widest version of
        the input tensor, not on the choices, so one input tensor for each widest version is enough.
        """
        seen: set[Any] = set()
        for network_options in product(*[choice.options for choice in self.network_choices]):
            shape = self.input_op_at(network_options).shape
            inputs: Mapping[int, InputTensor] = {
                shape[0]: (shape, Channels.prefix(shape[0], shape[0]))
            }
            strides = self.strides_for(network_options)
            for stage, stride in zip(self.stages, strides, strict=True):
                outputs: dict[int, InputTensor] = {}
                options = stage.relevant_options(network_options)
                for graph in stage.block_graphs_with_slots(inputs, outputs, options, stride):
                    key = tuple([op._replace(inputs=(), shape=(0, 0, 0)) for op in graph.ops])
                    if key not in seen:
                        seen.add(key)
                        yield graph
                if stage.stage.name == self._space.exit:
                    yield from exit_graphs(self._space, iter(outputs.values()))
                inputs = outputs
