"""`Builder`: what a block function writes its ops with.

A block function never sees a whole network. It receives a `Builder`, its input tensor and its
choices, adds ops, and returns its output tensor. Every size that a search can vary is an `Elastic`
number: the value of this architecture together with the smallest and the largest value in the
space, from which the builder knows which part of a supernet's weights each op uses.
"""

from __future__ import annotations

from typing import NamedTuple

from nas.errors import SpaceError
from nas.files.documents import shortened
from nas.graph import ACTIVATIONS, Channels, Graph, Op, Shape, Slot
from nas.space.architecture import is_number
from nas.space.elastic import Elastic


def require_option(name: str, option: str, known: tuple[str, ...]) -> None:
    """Raise SpaceError if the argument `name` of a block is none of the options that it knows."""
    if option not in known:
        raise SpaceError(f"{name} is {option!r}.", remedy=f"Use one of {', '.join(known)}.")


class SymbolicTensor(NamedTuple):
    """The output of an op while a graph is being built: a shape without values.

    Attributes:
        position: of the op in the graph.
        shape: `(channels, height, width)`.
        channels: which channels of the widest version of the tensor these are.
    """

    position: int
    shape: Shape
    channels: Channels

    @property
    def width(self) -> Elastic:
        """The number of channels, with the largest number in the space."""
        return Elastic(self.shape[0], 1, self.channels.extent)


class _Window(NamedTuple):
    """How a convolution or a pooling slides over a map: sizes in pixels."""

    kernel: int
    padding: int
    output: tuple[int, int]


def _grouped_channels(count: int, extent: int, groups: int) -> Channels:
    """Return the first channels of each of `groups` equal parts of the widest version."""
    if groups == 1 or count == extent:
        return Channels.prefix(count, extent)
    part, whole = count // groups, extent // groups
    return Channels(tuple((g * whole, g * whole + part) for g in range(groups)), extent)


def _parts(channels: Channels, count: int) -> list[list[int]] | None:
    """Return the positions of each of `count` equal parts, in that part of the widest version.

    Returns None if the parts of the widest version are not equal, or a part of the channels is not
    in the same part of the widest version.
    """
    positions, whole = channels.positions, channels.extent // count
    size = len(positions) // count
    parts = [
        [position - part * whole for position in positions[part * size : (part + 1) * size]]
        for part in range(count)
    ]
    inside = all(0 <= each < whole for part in parts for each in part)
    return parts if inside and channels.extent % count == 0 else None


class Builder:
    """Adds ops to a graph; every method returns the output tensor of the op that it added.

    Example:
        >>> build = Builder((3, 32, 32), classes=10, norm=True, activation="relu")
        >>> x = build.conv_unit(build.input, "stem", 16, kernel=3, stride=2)
        >>> x.shape
        (16, 16, 16)
        >>> [op.kind for op in build.graph().ops]
        ['input', 'conv', 'norm', 'relu']
    """

    def __init__(
        self,
        image: Shape,
        *,
        classes: int,
        norm: bool,
        activation: str,
        channels: Channels | None = None,
    ) -> None:
        """Start a graph with its input op.

        Args:
            image: shape of the input, `(channels, height, width)`.
            classes: number of classes, for the blocks that end a network.
            norm: whether `conv_unit` adds a batch norm behind its convolution.
            activation: the activation that `conv_unit` ends with unless it is told another one.
            channels: which channels of its widest version the input is; by default all of them.
        """
        self.classes = classes
        self.norm = norm
        self.activation = activation
        self._ops: list[Op] = [Op("input", (), image)]
        self.input = SymbolicTensor(0, image, channels or Channels.prefix(image[0], image[0]))

    def graph(self) -> Graph:
        """Return the graph of the ops added so far."""
        return Graph(tuple(self._ops))

    def conv(
        self,
        x: SymbolicTensor,
        name: str,
        out: Elastic | Channels | int,
        *,
        kernel: Elastic | int = 1,
        stride: int = 1,
        groups: int = 1,
        padding: str = "same",
        bias: bool = False,
    ) -> SymbolicTensor:
        """Add a convolution, dense or in `groups`.

        Args:
            x: input.
            name: of the slot that holds the weights; unique in the graph.
            out: number of output channels, which are the first ones of the widest version; or which
                channels of the widest version they are.
            kernel: height and width of the kernel.
            stride: in both directions.
            groups: a divisor of the input and of the output channels.
            padding: "same", or "valid" for none.
            bias: whether the convolution adds a bias.

        Raises SpaceError for channels that `groups` does not divide, or a kernel larger than `x`.
        """
        kernel = Elastic.of(kernel)
        if isinstance(out, Channels):
            channels = out
        else:
            out = Elastic.of(out)
            channels = _grouped_channels(int(out), int(out.largest), groups)
        for count, end in ((x.shape[0], "incoming"), (channels.width, "outgoing")):
            if count % groups:
                raise SpaceError(
                    f"{name}: {count} {end} channels cannot be divided into {groups} groups.",
                    remedy=f"Use multiples of {groups}.",
                )
        inputs = x.channels.numbered
        if groups > 1:
            inputs = Channels.prefix(x.shape[0] // groups, inputs.extent // groups)
        window = self._window(x, name, kernel, stride, padding)
        slot = Slot(name, channels, inputs, int(kernel.largest))
        return self._conv(x, window, slot, channels, stride, groups, bias)

    def depthwise(
        self,
        x: SymbolicTensor,
        name: str,
        *,
        kernel: Elastic | int,
        stride: int = 1,
        bias: bool = False,
    ) -> SymbolicTensor:
        """Add a convolution of each channel by itself, with "same" padding; see `conv`."""
        kernel = Elastic.of(kernel)
        window = self._window(x, name, kernel, stride, "same")
        slot = Slot(name, x.channels.numbered, None, int(kernel.largest))
        return self._conv(x, window, slot, x.channels, stride, x.shape[0], bias)

    def _conv(
        self,
        x: SymbolicTensor,
        window: _Window,
        slot: Slot,
        channels: Channels,
        stride: int,
        groups: int,
        bias: bool,
    ) -> SymbolicTensor:
        shape, (kernel, padding, _) = (channels.width, *window.output), window
        op = Op("conv", (x.position,), shape, kernel, stride, padding, groups, bias, slot=slot)
        return self._add(op, channels)

    def norm_and_activate(
        self, x: SymbolicTensor, name: str, *, activate: bool | str = True
    ) -> SymbolicTensor:
        """Add the norm, if the space has norms, and the activation behind the convolution `name`.

        `activate` is True for the space's activation, False for none, or the name of another one.
        """
        if self.norm:
            slot = Slot(f"{name}.norm", x.channels.numbered)
            x = self._add(Op("norm", (x.position,), x.shape, slot=slot), x.channels)
        if isinstance(activate, str):
            return self.activate(x, activate)
        return self.activate(x) if activate else x

    def conv_unit(
        self,
        x: SymbolicTensor,
        name: str,
        out: Elastic | Channels | int,
        *,
        kernel: Elastic | int = 1,
        stride: int = 1,
        groups: int = 1,
        padding: str = "same",
        activate: bool | str = True,
    ) -> SymbolicTensor:
        """Add a convolution, norm and activation, or with a bias where the space has no norms.

        See `conv` and `norm_and_activate` for the arguments.
        """
        x = self.conv(
            x,
            name,
            out,
            kernel=kernel,
            stride=stride,
            groups=groups,
            padding=padding,
            bias=not self.norm,
        )
        return self.norm_and_activate(x, name, activate=activate)

    def depthwise_unit(
        self,
        x: SymbolicTensor,
        name: str,
        *,
        kernel: Elastic | int,
        stride: int = 1,
        activate: bool | str = True,
    ) -> SymbolicTensor:
        """Add a depthwise convolution, norm and activation; see `conv_unit`."""
        x = self.depthwise(x, name, kernel=kernel, stride=stride, bias=not self.norm)
        return self.norm_and_activate(x, name, activate=activate)

    def activate(self, x: SymbolicTensor, kind: str | None = None) -> SymbolicTensor:
        """Add the space's activation, or the one named by `kind` (see `nas.graph.ACTIVATIONS`)."""
        kind = self.activation if kind is None else kind
        if kind not in ACTIVATIONS:
            raise SpaceError(
                f"There is no activation {kind!r}.",
                remedy=f"Use one of {', '.join(sorted(ACTIVATIONS))}.",
            )
        return self._add(Op(kind, (x.position,), x.shape), x.channels)

    def add(self, a: SymbolicTensor, b: SymbolicTensor) -> SymbolicTensor:
        """Add the sum of two tensors of one shape."""
        if a.shape != b.shape:
            raise SpaceError(f"An addition needs equal shapes, not {a.shape} and {b.shape}.")
        return self._add(Op("add", (a.position, b.position), a.shape), a.channels)

    def multiply(self, x: SymbolicTensor, gate: SymbolicTensor) -> SymbolicTensor:
        """Add the product of each channel of `x` and its value in `gate` (`channels x 1 x 1`)."""
        if gate.shape != (x.shape[0], 1, 1):
            raise SpaceError(f"A gate of {x.shape} needs {(x.shape[0], 1, 1)}, not {gate.shape}.")
        return self._add(Op("multiply", (x.position, gate.position), x.shape), x.channels)

    def concat(
        self, a: SymbolicTensor, b: SymbolicTensor, *, replaces: SymbolicTensor | None = None
    ) -> SymbolicTensor:
        """Add the concatenation of the channels of `a` and `b`.

        Each channel keeps its place in the widest version of the concatenation.

        Args:
            a: the first channels.
            b: the other channels.
            replaces: a tensor of as many channels. The parameters of later ops know each channel of
                the concatenation by the number of the channel that it replaces, through shuffles
                too. A network without the block then reads the same numbers.
        """
        if a.shape[1:] != b.shape[1:]:
            raise SpaceError(f"A concatenation needs equal sizes, not {a.shape} and {b.shape}.")
        shape, offset = (a.shape[0] + b.shape[0], *a.shape[1:]), a.channels.extent
        positions = [*a.channels.positions, *[offset + each for each in b.channels.positions]]
        extent = offset + b.channels.extent
        numbers: tuple[int, ...] = ()
        if replaces is not None:
            if (shape[0], extent) != (replaces.shape[0], replaces.channels.extent):
                raise SpaceError(
                    f"A concatenation of {shape[0]} of {extent} channels cannot replace a tensor "
                    f"of {replaces.shape[0]} of {replaces.channels.extent}."
                )
            numbers = replaces.channels.numbers or tuple(replaces.channels.positions)
        op = Op("concat", (a.position, b.position), shape)
        return self._add(op, Channels.at(positions, extent, numbers))

    def shuffle(self, x: SymbolicTensor, groups: int) -> SymbolicTensor:
        """Add a channel shuffle (Zhang et al. 2018, ShuffleNet), which interleaves `groups` parts.

        Each channel moves to the place that it has in the widest version of the output. Channels
        get new numbers, unless `concat` gave them the numbers of others.
        """
        c = x.shape[0]
        if c % groups:
            raise SpaceError(f"{c} channels cannot be shuffled in {groups} equal groups.")
        size, extent = c // groups, x.channels.extent
        order = [part * size + index for index in range(size) for part in range(groups)]
        numbers = tuple([x.channels.numbers[each] for each in order if x.channels.numbers])
        channels = Channels.prefix(c, extent)
        parts = _parts(x.channels, groups)
        if parts is not None:
            moved = [each * groups + part for part, own in enumerate(parts) for each in own]
            channels = Channels.at([moved[each] for each in order], extent)
        op = Op("shuffle", (x.position,), x.shape, groups=groups)
        return self._add(op, channels._replace(numbers=numbers))

    def split(self, x: SymbolicTensor) -> tuple[SymbolicTensor, SymbolicTensor]:
        """Add both halves of the channels, each numbered anew by the place in its widest half."""
        c, h, w = x.shape
        if c % 2:
            raise SpaceError(f"{c} channels cannot be split in two.")
        extent = x.channels.extent // 2
        parts = _parts(x.channels, 2)
        halves = (
            [Channels.spread(c // 2, extent)] * 2
            if parts is None
            else [Channels.at(part, extent) for part in parts]
        )
        first, second = (
            self._add(Op("slice", (x.position,), (c // 2, h, w), start=start), channels)
            for start, channels in zip((0, c // 2), halves, strict=True)
        )
        return first, second

    def max_pool(
        self, x: SymbolicTensor, name: str, *, kernel: int, stride: int, padding: str = "same"
    ) -> SymbolicTensor:
        """Add a max pooling; with "valid" padding the last window may overhang the border."""
        return self._pool("max_pool", x, name, kernel, stride, padding)

    def avg_pool(
        self, x: SymbolicTensor, name: str, *, kernel: int, stride: int, padding: str = "same"
    ) -> SymbolicTensor:
        """Add an average pooling, in which the zeros of the padding count."""
        return self._pool("avg_pool", x, name, kernel, stride, padding)

    def _pool(
        self, kind: str, x: SymbolicTensor, name: str, kernel: int, stride: int, padding: str
    ) -> SymbolicTensor:
        w = self._window(x, name, Elastic.of(kernel), stride, padding, crop=False, ceil=True)
        op = Op(kind, (x.position,), (x.shape[0], *w.output), w.kernel, stride, w.padding)
        return self._add(op, x.channels)

    def global_pool(self, x: SymbolicTensor) -> SymbolicTensor:
        """Add the mean over height and width."""
        return self._add(Op("global_pool", (x.position,), (x.shape[0], 1, 1)), x.channels)

    def linear(self, x: SymbolicTensor, name: str, out: Elastic | int) -> SymbolicTensor:
        """Add a fully connected layer with a bias, on a vector."""
        out = Elastic.of(out)
        channels = Channels.prefix(int(out), int(out.largest))
        op = Op("linear", (x.position,), (int(out), 1, 1), bias=True)
        return self._add(op._replace(slot=Slot(name, channels, x.channels.numbered)), channels)

    def _window(
        self,
        x: SymbolicTensor,
        name: str,
        kernel: Elastic,
        stride: int,
        padding: str,
        *,
        crop: bool = True,
        ceil: bool = False,
    ) -> _Window:
        """Return the kernel size, padding and output size of a sliding window.

        A kernel of `k` reaches `k // 2` pixels to each side. On a map of `n` pixels, taps further
        than `n - 1` from the centre only ever meet "same" padding, so a larger kernel is cropped to
        `2n - 1`, which computes exactly the same.

        Args:
            x: input.
            name: of the op, for messages.
            kernel: height and width.
            stride: in both directions.
            padding: "same" or "valid".
            crop: whether a kernel may be cropped.
            ceil: whether the last window may overhang the border.
        """
        _, h, w = x.shape
        for what, number in (("kernel size", kernel.value), ("stride", stride)):
            if not is_number(number) or number != int(number) or number < 1:
                raise SpaceError(
                    f"{name}: the {what} is {shortened(number)}.",
                    remedy="Use a whole number of 1 or more.",
                )
        size = int(kernel)
        if size % 2 == 0 and padding == "same":
            raise SpaceError(
                f"{name}: kernel size {size} is even.",
                remedy='Use an odd kernel, or padding "valid".',
            )
        if padding == "same":
            largest_useful = 2 * min(h, w) - 1
            if kernel.smallest > largest_useful:
                raise SpaceError(
                    f"{name}: a kernel of {int(kernel.smallest)} is larger than its {h}x{w} input: "
                    "its outer taps would only ever meet padding.",
                    remedy=f"Use at most {largest_useful}, fewer strides, or larger images.",
                )
            if crop:
                size = min(size, largest_useful)
            return _Window(size, size // 2, (-(-h // stride), -(-w // stride)))
        if padding != "valid":
            raise SpaceError(f'{name}: padding is {padding!r}. Use "same" or "valid".')
        if size > min(h, w):
            raise SpaceError(
                f"{name}: a kernel of {size} without padding is larger than its {h}x{w} input.",
                remedy=f'Use at most {min(h, w)}, padding "same", fewer strides, or larger images.',
            )

        def windows(extent: int) -> int:
            if not ceil:
                return (extent - size) // stride + 1
            # The last window may overhang the border, but has to start inside it.
            return min(-(-(extent - size) // stride) + 1, -(-extent // stride))

        return _Window(size, 0, (windows(h), windows(w)))

    def _add(self, op: Op, channels: Channels) -> SymbolicTensor:
        self._ops.append(op)
        return SymbolicTensor(len(self._ops) - 1, op.shape, channels)
