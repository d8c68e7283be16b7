"""A tile of a matrix product, from memory through shared memory to the registers of a block.

A block computes a tile of pixels by channels. Piece by piece of the reduction it brings inputs and
weights to shared memory, and each thread multiplies them into a tile of registers, while the next
piece is already on its way (tiling after Volkov and Demmel 2008). Where one image gives too few
blocks to fill a GPU, slices of a block's threads share the reduction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nas.schedules.cuda import grid
from nas.schedules.cuda.body import Body
from nas.schedules.cuda.grid import Expr, Grid, Stmt, Tensor

SIZES = ("pixels", "channels", "rows", "columns", "depth", "slices")
"""What a schedule says."""

DEEP = 4
"""Steps of the reduction that are read from shared memory at once."""


@dataclass(frozen=True)
class Tiling:
    """Sizes of the loops of a product. Raises ValueError where threads cannot share a tile evenly.

    A schedule has `pixels` x `channels` of a block's tile, `rows` x `columns` of it for each
    thread, `depth` of a piece of the reduction, and `slices` of threads that share the reduction.
    """

    pixels: int  # of a block
    channels: int  # of a block
    rows: int  # pixels of a thread
    columns: int  # channels of a thread
    depth: int
    slices: int
    groups: int
    outputs: int  # channels of one group
    positions: int  # output pixels
    reduction: int  # taps x inputs
    item: int  # bytes of an element

    def __post_init__(self) -> None:
        if self.pixels % self.rows or self.channels % self.columns or self.depth % DEEP:
            raise ValueError(f"threads do not share a tile evenly in {self}")

    @property
    def threads(self) -> tuple[int, int, int]:
        """Of a block: along channels, along pixels, slices."""
        return self.channels // self.columns, self.pixels // self.rows, self.slices

    @property
    def blocks(self) -> tuple[int, int, int]:
        """Along channels, along pixels, groups."""
        return -(-self.outputs // self.channels), -(-self.positions // self.pixels), self.groups

    @property
    def pieces(self) -> int:
        """Of the reduction, for each slice."""
        return -(-self.reduction // (self.depth * self.slices))

    @property
    def padded(self) -> int:
        """The reduction, filled up to whole pieces for every slice."""
        return self.pieces * self.slices * self.depth

    @property
    def stages(self) -> int:
        """Pieces in shared memory: one is multiplied while the next arrives."""
        return min(2, self.pieces)

    @property
    def pitch(self) -> int:
        """Elements from a pixel's inputs to the next in shared memory.

        16 bytes more than there are, so that threads of different pixels use different banks.
        """
        return self.depth + 16 // self.item

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block."""
        piece = self.pixels * self.pitch + self.depth * self.channels
        sums = 4 * self.pixels * self.channels if self.slices > 1 else 0
        return self.slices * (self.stages * piece * self.item + sums)

    @property
    def weight_size(self) -> int:
        """Elements of the packed weights: groups x tiles x padded reduction x tile channels."""
        return self.groups * self.blocks[0] * self.padded * self.channels

    def packed(self, weight: NDArray[np.float32]) -> NDArray[np.float32]:
        """Weights as the product reads them: groups x tiles x padded reduction x tile channels.

        Args:
            weight: groups x outputs x reduction.
        """
        padded = np.zeros((self.groups, self.blocks[0] * self.channels, self.padded), np.float32)
        padded[:, : self.outputs, : self.reduction] = weight
        tiled = padded.reshape(self.groups, self.blocks[0], self.channels, self.padded)
        return np.ascontiguousarray(tiled.transpose(0, 1, 3, 2)).reshape(-1)

    def packed_bias(self, bias: NDArray[np.float32]) -> NDArray[np.float32]:
        """From one value an output channel to groups x tiles x tile channels, flat."""
        padded = np.zeros((self.groups, self.blocks[0] * self.channels), np.float32)
        padded[:, : self.outputs] = bias.reshape(self.groups, self.outputs)
        return padded.reshape(-1)


Source = Callable[[Expr, Expr], tuple[Expr, Expr]]
"""From a pixel of the block's tile and a step of the reduction to the offset of the input and the
condition on which there is one."""


class Product:
    """What a thread does, from the first piece to sums in its registers.

    Args:
        body: of the kernel; its first input is multiplied.
        t: the tile.
        launch: blocks and threads, as `t` says.
        weight: packed by `Tiling.packed`.
        source: where inputs are.
        vector: inputs along the reduction that lie side by side and are read at once.
    """

    def __init__(
        self, body: Body, t: Tiling, launch: Grid, weight: Tensor, source: Source, vector: int
    ) -> None:
        if t.shared_bytes > grid.SHARED_BYTES:
            raise ValueError(f"a tile of {t.shared_bytes} bytes does not fit into shared memory")
        self.body, self.t, self.launch = body, t, launch
        self._weight, self._source, self._input_vector = weight, source, vector
        self.x, self.y, self.slice = launch.thread
        across, along, _ = t.threads
        self.mates = across * along
        self.mate = self.y * across + self.x
        self._weight_vector = grid.vector_width(body.dtype, t.depth * t.channels)
        # A thread's channels are vectors that lie as far apart as all threads' together.
        self.column_vector = grid.vector_width(body.dtype, t.columns)
        stages = t.slices * t.stages
        self._inputs = Tensor("shared_inputs", stages * t.pixels * t.pitch, body.dtype, "shared")
        self._weights = Tensor(
            "shared_weights", stages * t.depth * t.channels, body.dtype, "shared"
        )
        self._allocation, self.sums = body.registers.make(t.rows * t.columns)

    def reduce(self) -> list[Stmt]:
        """Brings piece after piece to shared memory and multiplies it into the registers."""
        t = self.t
        found = [self._inputs.allocate(), self._weights.allocate(), self._allocation]
        found += [self.sums.put(i, grid.real(0)) for i in range(t.rows * t.columns)]
        fetches = [self._fetch_inputs(), self._fetch_weights()]
        found += [each.allocation for each in fetches]

        def fetch(piece: Expr) -> list[Stmt]:
            return [statement for each in fetches for statement in each.fetch(piece)]

        def keep(stage: Expr) -> list[Stmt]:
            return [statement for each in fetches for statement in each.keep(stage)]

        def piece(index: Expr, *, last: bool) -> list[Stmt]:
            stage = index % t.stages
            # Two stages need one barrier a piece: who writes a stage again has passed the barrier
            # behind which everyone had read it.
            done = [*keep(stage), grid.barrier()]
            return done + ([] if last else fetch(index + 1)) + self._multiply(stage)

        found += fetch(0)
        found += grid.loop(t.pieces - 1, lambda index: piece(index, last=False))
        return found + piece(t.pieces - 1, last=True)

    def _fetch_inputs(self) -> _Fetch:
        t, wide = self.t, self._input_vector
        across = t.depth // wide

        def source(piece: Expr, vector: Expr) -> tuple[Expr, Expr]:
            at = (self.slice * t.pieces + piece) * t.depth + vector % across * wide
            offset, condition = self._source(vector // across, at)
            inside = None if t.padded == t.reduction else at < t.reduction
            return offset, grid.every(condition, inside)

        def target(vector: Expr) -> Expr:
            return vector // across * t.pitch + vector % across * wide

        return _Fetch(
            self, source=source, target=target, tensor=self.body.inputs[0],
            shared=self._inputs, stage=t.pixels * t.pitch, vectors=t.pixels * across, wide=wide,
        )  # fmt: skip

    def _fetch_weights(self) -> _Fetch:
        t, wide = self.t, self._weight_vector
        tile, _, group = self.launch.block
        piece_size = t.depth * t.channels
        start = (group * t.blocks[0] + tile) * t.padded * t.channels

        def source(piece: Expr, vector: Expr) -> tuple[Expr, Expr]:
            return start + (self.slice * t.pieces + piece) * piece_size + vector * wide, None

        return _Fetch(
            self, source=source, target=lambda vector: vector * wide,
            tensor=self._weight, shared=self._weights, stage=piece_size,
            vectors=piece_size // wide, wide=wide,
        )  # fmt: skip

    def stage_at(self, stage: Expr, size: int) -> Expr:
        """Where a stage of this thread's slice begins in shared memory, for stages of `size`."""
        return (self.slice * self.t.stages + stage) * size

    def _multiply(self, stage: Expr) -> list[Stmt]:
        """Multiplies a piece in shared memory, `DEEP` steps of the reduction at a time."""
        t, read = self.t, self.body.registers.read
        across, along, _ = t.threads
        deep, wide = DEEP, self.column_vector
        inputs_at = self.stage_at(stage, t.pixels * t.pitch)
        weights_at = self.stage_at(stage, t.depth * t.channels)

        def step(index: Expr) -> list[Stmt]:
            found: list[Stmt] = []
            inputs: list[list[Expr]] = []
            for i in range(t.rows):
                at = inputs_at + (i * along + self.y) * t.pitch + index * deep
                loads, values = read(self._inputs, at, deep)
                found += loads
                inputs.append(values)
            for k in range(deep):
                weights: list[Expr] = []
                for vector in range(t.columns // wide):
                    at = weights_at + (index * deep + k) * t.channels
                    loads, values = read(
                        self._weights, at + (vector * across + self.x) * wide, wide
                    )
                    found += loads
                    weights += values
                for i in range(t.rows):
                    for j, weight in enumerate(weights):
                        at = i * t.columns + j
                        found.append(self.sums.put(at, self.sums.load(at) + inputs[i][k] * weight))
            return found

        return grid.loop(t.depth // deep, step)

    def tile_of(self, wide: int) -> list[tuple[Expr, Expr, list[Expr]]]:
        """Where the thread's sums belong: pixel and channel of the tile, and `wide` values.

        `wide` must divide `column_vector`.
        """
        t = self.t
        across, along, _ = t.threads
        found = []
        for i in range(t.rows):
            for j in range(0, t.columns, wide):
                vector, rest = divmod(j, self.column_vector)
                channel = (vector * across + self.x) * self.column_vector + rest
                values = [self.sums.load(i * t.columns + j + v) for v in range(wide)]
                found.append((i * along + self.y, channel, values))
        return found


class _Fetch:
    """A piece of inputs or weights on its way: from memory to registers, then to shared memory.

    Args:
        product: whose threads share the work.
        source: offset and condition of a vector, from the piece and the vector's number.
        target: where the vector goes in a stage.
        tensor, shared: from where to where.
        stage: elements of a stage.
        vectors: of a piece.
        wide: elements of a vector.
    """

    def __init__(
        self,
        product: Product,
        *,
        source: Callable[[Expr, Expr], tuple[Expr, Expr]],
        target: Callable[[Expr], Expr],
        tensor: Tensor,
        shared: Tensor,
        stage: int,
        vectors: int,
        wide: int,
    ) -> None:
        self._product, self._source, self._target = product, source, target
        self._tensor, self._shared, self._stage = tensor, shared, stage
        self._vectors, self._wide = vectors, wide
        self._turns = -(-vectors // product.mates)
        self.allocation, self._held = product.body.registers.make(self._turns * wide, tensor.dtype)

    def fetch(self, piece: Expr) -> list[Stmt]:
        """Reads this thread's vectors of a piece; zeros where there is nothing."""
        found = []
        for turn in range(self._turns):
            vector = turn * self._product.mates + self._product.mate
            at, condition = self._source(piece, vector)
            condition = grid.every(condition, self._exists(turn, vector))
            zeros = grid.zeros(self._tensor.dtype, self._wide)
            value = grid.chosen(condition, self._tensor.load(at, self._wide), zeros)
            found.append(self._held.store(turn * self._wide, value, self._wide))
        return found

    def keep(self, stage: Expr) -> list[Stmt]:
        """Writes them to a stage in shared memory."""
        found = []
        for turn in range(self._turns):
            vector = turn * self._product.mates + self._product.mate
            at = self._product.stage_at(stage, self._stage) + self._target(vector)
            value = self._held.load(turn * self._wide, self._wide)
            store = self._shared.store(at, value, self._wide)
            found += grid.when(self._exists(turn, vector), [store])
        return found

    def _exists(self, turn: int, vector: Expr) -> Expr:
        whole = (turn + 1) * self._product.mates <= self._vectors
        return None if whole else vector < self._vectors
