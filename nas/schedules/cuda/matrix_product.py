"""A tile of a matrix product, from global memory through shared memory to registers.

A block computes a tile of pixels by channels. It brings inputs and weights to shared memory in
chunks of the reduction, and each thread multiplies them into a tile of registers while the next
chunk is being loaded (tiling as in Volkov and Demmel 2008, "Benchmarking GPUs to tune dense linear
algebra"). Where one image gives too few blocks to fill a GPU, slices of a block's threads share the
reduction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nas.schedules.cuda import grid
from nas.schedules.cuda.body import KernelBody
from nas.schedules.cuda.grid import Grid
from nas.schedules.tir import Buffer, Expr, Stmt, all_of, broadcast, loop, run_if, select

SCHEDULE_KEYS = ("pixels", "channels", "rows", "columns", "depth", "slices")
"""Keys of a schedule, which are also the first fields of `MatrixProductTiling`."""

REDUCTION_UNROLL = 4
"""Steps of the reduction that a thread reads from shared memory at once, as one vector."""


@dataclass(frozen=True)
class MatrixProductTiling:
    """Sizes of the loops of a matrix product.

    Args:
        pixels: pixels of a block's tile.
        channels: output channels of a block's tile.
        rows: pixels of a thread.
        columns: output channels of a thread.
        depth: steps of the reduction of a chunk.
        slices: slices of threads that share the reduction.
        groups: groups of the convolution.
        outputs: output channels of one group.
        positions: output pixels of the image.
        reduction: steps of the reduction, taps x input channels of one group.
        item_bytes: bytes of an element.

    Raises:
        ValueError: threads cannot share a tile evenly.
    """

    pixels: int
    channels: int
    rows: int
    columns: int
    depth: int
    slices: int
    groups: int
    outputs: int
    positions: int
    reduction: int
    item_bytes: int

    def __post_init__(self) -> None:
        if self.pixels % self.rows or self.channels % self.columns or self.depth % REDUCTION_UNROLL:
            raise ValueError(f"threads do not share a tile evenly in {self}")

    @property
    def threads(self) -> tuple[int, int, int]:
        """Threads of a block: along channels, along pixels, slices."""
        return self.channels // self.columns, self.pixels // self.rows, self.slices

    @property
    def blocks(self) -> tuple[int, int, int]:
        """Blocks: along channels, along pixels, groups."""
        return -(-self.outputs // self.channels), -(-self.positions // self.pixels), self.groups

    @property
    def chunks(self) -> int:
        """Chunks of the reduction for each slice."""
        return -(-self.reduction // (self.depth * self.slices))

    @property
    def padded_reduction(self) -> int:
        """Steps of the reduction, padded to whole chunks for every slice."""
        return self.chunks * self.slices * self.depth

    @property
    def stages(self) -> int:
        """Chunks in shared memory: two, so that one is multiplied while the next arrives."""
        return min(2, self.chunks)

    @property
    def pitch(self) -> int:
        """Elements from a pixel's inputs to the next pixel's in shared memory.

        They are 16 bytes more than the inputs, so that threads of different pixels use different
        banks.
        """
        return self.depth + 16 // self.item_bytes

    @property
    def shared_bytes(self) -> int:
        """Bytes of shared memory of a block."""
        chunk = self.pixels * self.pitch + self.depth * self.channels
        sums = 4 * self.pixels * self.channels if self.slices > 1 else 0
        return self.slices * (self.stages * chunk * self.item_bytes + sums)

    @property
    def weight_size(self) -> int:
        """Elements of the packed weights."""
        return self.groups * self.blocks[0] * self.padded_reduction * self.channels

    @property
    def bias_size(self) -> int:
        """Elements of the packed bias."""
        return self.groups * self.blocks[0] * self.channels

    def pack_weight(self, weight: NDArray[np.float32]) -> NDArray[np.float32]:
        """Pack weights from `groups, outputs, reduction` to the order in which blocks read them.

        Returns:
            `groups, tiles of channels, padded reduction, channels of a tile`, flat.
        """
        tiles = self.blocks[0]
        padded = np.zeros((self.groups, tiles * self.channels, self.padded_reduction), np.float32)
        padded[:, : self.outputs, : self.reduction] = weight
        tiled = padded.reshape(self.groups, tiles, self.channels, self.padded_reduction)
        return np.ascontiguousarray(tiled.transpose(0, 1, 3, 2)).reshape(-1)

    def pack_bias(self, bias: NDArray[np.float32]) -> NDArray[np.float32]:
        """Pack a bias of one value for each output channel.

        Returns:
            `groups, tiles of channels, channels of a tile`, flat.
        """
        padded = np.zeros((self.groups, self.blocks[0] * self.channels), np.float32)
        padded[:, : self.outputs] = bias.reshape(self.groups, self.outputs)
        return padded.reshape(-1)


InputLocation = Callable[[Expr, Expr], tuple[Expr, Expr]]
"""From a pixel of the block's tile and a step of the reduction to the offset of the input element
and the condition on which it exists (None: always)."""


class MatrixProduct:
    """The part of a kernel that multiplies: from the first chunk to sums in a thread's registers.

    Args:
        body: body of the kernel; its first input is multiplied.
        t: sizes of the loops.
        launch: blocks and threads, as `t` counts them.
        weight: weights, packed by `MatrixProductTiling.pack_weight`.
        locate_input: where the inputs are.
        input_vector: inputs along the reduction that lie side by side and are read as one vector.

    Attributes:
        slice: slice of the thread.
        thread_in_slice: number of the thread in its slice.
        threads_per_slice: number of threads of a slice.
        column_vector: output channels of a thread that lie side by side in the tile.
        sums: register array of the sums, `rows x columns`.

    Raises:
        ValueError: the tile does not fit into shared memory.
    """

    def __init__(
        self,
        body: KernelBody,
        t: MatrixProductTiling,
        launch: Grid,
        weight: Buffer,
        locate_input: InputLocation,
        input_vector: int,
    ) -> None:
        if t.shared_bytes > grid.MAX_SHARED_BYTES:
            raise ValueError(f"a tile of {t.shared_bytes} bytes does not fit into shared memory")
        self.body, self.t, self.launch = body, t, launch
        self._weight = weight
        self._locate_input, self._input_vector = locate_input, input_vector
        self._x, self._y, self.slice = launch.thread
        threads_x, threads_y, _ = t.threads
        self.threads_per_slice = threads_x * threads_y
        self.thread_in_slice = self._y * threads_x + self._x
        self._weight_vector = grid.vector_width(body.dtype, t.depth * t.channels)
        # A thread's channels are vectors, each `threads_x` vectors behind the one before.
        self.column_vector = grid.vector_width(body.dtype, t.columns)
        stages = t.slices * t.stages
        self._inputs = Buffer(
            "shared_inputs", stages * t.pixels * t.pitch, body.dtype, scope="shared"
        )
        self._weights = Buffer(
            "shared_weights", stages * t.depth * t.channels, body.dtype, scope="shared"
        )
        self._allocation, self.sums = body.registers.allocate(t.rows * t.columns)

    def reduce(self) -> list[Stmt]:
        """Return the statements that load all chunks and multiply them into the registers."""
        t = self.t
        statements = [self._inputs.allocate(), self._weights.allocate(), self._allocation]
        statements += [self.sums.store_float32(i, broadcast(0)) for i in range(t.rows * t.columns)]
        loaders = [self._input_loader(), self._weight_loader()]
        statements += [loader.allocation for loader in loaders]

        def load(chunk: Expr) -> list[Stmt]:
            return [statement for loader in loaders for statement in loader.load(chunk)]

        def store(stage: Expr) -> list[Stmt]:
            return [statement for loader in loaders for statement in loader.store(stage)]

        def multiply(chunk: Expr, *, is_last: bool) -> list[Stmt]:
            stage = chunk % t.stages
            # One barrier for each chunk is enough for two stages: a thread that writes a stage
            # again has passed the barrier behind which all threads had read it.
            ready = [*store(stage), grid.barrier()]
            return ready + ([] if is_last else load(chunk + 1)) + self._multiply(stage)

        statements += load(0)
        statements += loop(t.chunks - 1, lambda chunk: multiply(chunk, is_last=False))
        return statements + multiply(t.chunks - 1, is_last=True)

    def _input_loader(self) -> _ChunkLoader:
        t, width = self.t, self._input_vector
        vectors_per_pixel = t.depth // width

        def locate(chunk: Expr, vector: Expr) -> tuple[Expr, Expr]:
            first = (self.slice * t.chunks + chunk) * t.depth
            step = first + vector % vectors_per_pixel * width
            offset, exists = self._locate_input(vector // vectors_per_pixel, step)
            inside = None if t.padded_reduction == t.reduction else step < t.reduction
            return offset, all_of(exists, inside)

        def target(vector: Expr) -> Expr:
            return vector // vectors_per_pixel * t.pitch + vector % vectors_per_pixel * width

        return _ChunkLoader(
            self,
            locate=locate,
            target=target,
            source=self.body.inputs[0],
            shared=self._inputs,
            stage_size=t.pixels * t.pitch,
            vectors=t.pixels * vectors_per_pixel,
            width=width,
        )

    def _weight_loader(self) -> _ChunkLoader:
        t, width = self.t, self._weight_vector
        tile, _, group = self.launch.block
        chunk_size = t.depth * t.channels
        start = (group * t.blocks[0] + tile) * t.padded_reduction * t.channels

        def locate(chunk: Expr, vector: Expr) -> tuple[Expr, Expr]:
            return start + (self.slice * t.chunks + chunk) * chunk_size + vector * width, None

        return _ChunkLoader(
            self,
            locate=locate,
            target=lambda vector: vector * width,
            source=self._weight,
            shared=self._weights,
            stage_size=chunk_size,
            vectors=chunk_size // width,
            width=width,
        )

    def stage_offset(self, stage: Expr, size: int) -> Expr:
        """Return where a stage of this thread's slice begins, for stages of `size` elements."""
        return (self.slice * self.t.stages + stage) * size

    def _multiply(self, stage: Expr) -> list[Stmt]:
        """Return the statements that multiply a chunk, `REDUCTION_UNROLL` steps at a time."""
        t, load = self.t, self.body.registers.load
        threads_x, threads_y, _ = t.threads
        width = self.column_vector
        inputs_at = self.stage_offset(stage, t.pixels * t.pitch)
        weights_at = self.stage_offset(stage, t.depth * t.channels)

        def steps(index: Expr) -> list[Stmt]:
            statements: list[Stmt] = []
            inputs: list[list[Expr]] = []
            for i in range(t.rows):
                at = inputs_at + (i * threads_y + self._y) * t.pitch + index * REDUCTION_UNROLL
                loads, values = load(self._inputs, at, REDUCTION_UNROLL)
                statements += loads
                inputs.append(values)
            for k in range(REDUCTION_UNROLL):
                weights: list[Expr] = []
                for vector in range(t.columns // width):
                    at = weights_at + (index * REDUCTION_UNROLL + k) * t.channels
                    at = at + (vector * threads_x + self._x) * width
                    loads, values = load(self._weights, at, width)
                    statements += loads
                    weights += values
                for i in range(t.rows):
                    for j, weight in enumerate(weights):
                        at = i * t.columns + j
                        total = self.sums.load(at) + inputs[i][k] * weight
                        statements.append(self.sums.store_float32(at, total))
            return statements

        return loop(t.depth // REDUCTION_UNROLL, steps)

    def results(self, width: int) -> list[tuple[Expr, Expr, list[Expr]]]:
        """Return the thread's sums as vectors of channels.

        Args:
            width: channels of a vector; divides `column_vector`.

        Returns:
            For each vector: its pixel and first channel in the block's tile, and its values.
        """
        t = self.t
        threads_x, threads_y, _ = t.threads
        vectors = []
        for i in range(t.rows):
            for j in range(0, t.columns, width):
                vector, rest = divmod(j, self.column_vector)
                channel = (vector * threads_x + self._x) * self.column_vector + rest
                values = [self.sums.load(i * t.columns + j + v) for v in range(width)]
                vectors.append((i * threads_y + self._y, channel, values))
        return vectors


class _ChunkLoader:
    """Load chunks of inputs or weights: first to registers, then to a stage of shared memory.

    Args:
        product: matrix product whose threads share the work.
        locate: from the chunk and the number of a vector to the offset of the vector in `source`
            and the condition on which it exists (None: always).
        target: from the number of a vector to its offset in a stage.
        source: buffer in global memory.
        shared: buffer in shared memory.
        stage_size: elements of a stage.
        vectors: vectors of a chunk.
        width: elements of a vector.

    Attributes:
        allocation: statement that allocates the registers.
    """

    def __init__(
        self,
        product: MatrixProduct,
        *,
        locate: Callable[[Expr, Expr], tuple[Expr, Expr]],
        target: Callable[[Expr], Expr],
        source: Buffer,
        shared: Buffer,
        stage_size: int,
        vectors: int,
        width: int,
    ) -> None:
        self._product, self._locate, self._target = product, locate, target
        self._source, self._shared, self._stage_size = source, shared, stage_size
        self._vectors, self._width = vectors, width
        self._vectors_per_thread = -(-vectors // product.threads_per_slice)
        self.allocation, self._loaded = product.body.registers.allocate(
            self._vectors_per_thread * width, source.dtype
        )

    def load(self, chunk: Expr) -> list[Stmt]:
        """Return the statements that load this thread's vectors; zeros replace missing ones."""
        statements = []
        for i in range(self._vectors_per_thread):
            vector = self._vector(i)
            at, exists = self._locate(chunk, vector)
            exists = all_of(exists, self._is_needed(i))
            zeros = broadcast(0, self._width, self._source.dtype)
            value = select(exists, self._source.load(at, self._width), zeros)
            statements.append(self._loaded.store(i * self._width, value, self._width))
        return statements

    def store(self, stage: Expr) -> list[Stmt]:
        """Return the statements that write the loaded vectors to a stage in shared memory."""
        statements = []
        for i in range(self._vectors_per_thread):
            stage_at = self._product.stage_offset(stage, self._stage_size)
            value = self._loaded.load(i * self._width, self._width)
            store = self._shared.store(stage_at + self._target(self._vector(i)), value, self._width)
            statements += run_if(self._is_needed(i), [store])
        return statements

    def _vector(self, i: int) -> Expr:
        """Return the number of the thread's vector `i` in the chunk."""
        return i * self._product.threads_per_slice + self._product.thread_in_slice

    def _is_needed(self, i: int) -> Expr:
        """Return the condition that the chunk has the thread's vector `i`; None: always."""
        always = (i + 1) * self._product.threads_per_slice <= self._vectors
        return None if always else self._vector(i) < self._vectors
