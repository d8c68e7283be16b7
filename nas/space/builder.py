"""What a block writes with: `Elastic` sizes and the `Builder` that turns calls into ops.

A block never sees a whole network. It gets a `Builder`, the incoming `Tensor` and its choices, adds
ops, and returns the outgoing `Tensor`. Every size a search can vary is an `Elastic`: the value of
this architecture together with the smallest and largest that any architecture of the space has, so
that the builder can say which part of a supernet's maximal weights each op uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from nas.errors import SpaceError
from nas.graph import ACTIVATIONS, Channels, Graph, Op, Shape, Slot


@dataclass(frozen=True)
class Elastic:
    """A number of one architecture, with the range it has over the space.

    Products and differences keep the range (interval arithmetic), so a block computes sizes as if
    they were plain numbers: `hidden = (x.width * expand).rounded(8)`.
    """

    value: float
    smallest: float
    largest: float

    @classmethod
    def of(cls, value: Elastic | float) -> Elastic:
        """A plain number as an `Elastic` that does not vary."""
        return value if isinstance(value, Elastic) else cls(value, value, value)

    @classmethod
    def among(cls, value: float, options: Sequence[float]) -> Elastic:
        """`value`, chosen from `options`."""
        return cls(value, min(options), max(options))

    def __mul__(self, other: Elastic | float) -> Elastic:
        if not isinstance(other, Elastic):
            return Elastic(self.value * other, self.smallest * other, self.largest * other)
        return Elastic(
            self.value * other.value,
            self.smallest * other.smallest,
            self.largest * other.largest,
        )

    __rmul__ = __mul__

    def complement(self) -> Elastic:
        """One minus a share."""
        return Elastic(1 - self.value, 1 - self.largest, 1 - self.smallest)

    def rounded(self, divisor: int) -> Elastic:
        """To a multiple of `divisor`, at least one of them and never more than a tenth down."""
        return Elastic(
            _round_channels(self.value, divisor),
            _round_channels(self.smallest, divisor),
            _round_channels(self.largest, divisor),
        )

    def __int__(self) -> int:
        return int(self.value)


def _round_channels(value: float, divisor: int) -> int:
    """The channel rounding of the MobileNet papers' reference code (`make_divisible`)."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


class Tensor(NamedTuple):
    """The output of an op while a graph is being built."""

    position: int
    shape: Shape
    channels: Channels

    @property
    def width(self) -> Elastic:
        """Its channel count, with the largest over the space."""
        return Elastic(self.shape[0], 1, self.channels.extent)


class _Window(NamedTuple):
    """How a kernel slides over a map."""

    kernel: int
    padding: int
    size: tuple[int, int]


def _grouped(count: int, extent: int, groups: int) -> Channels:
    """The first channels of each of `groups` equal parts of the widest version."""
    if groups == 1 or count == extent:
        return Channels.prefix(count, extent)
    part, whole = count // groups, extent // groups
    return Channels(tuple((g * whole, g * whole + part) for g in range(groups)), extent)


class Builder:
    """Adds ops to a graph; every method returns the `Tensor` it made.

    Args:
        image: input shape `(channels, height, width)`.
        classes: what a head ends with.
        norm: whether `conv_unit` puts a batch norm behind its convolution.
        activation: the op kind that `conv_unit` ends with.
        channels: which channels of its widest version the input is; by default all of them.
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
        self.classes = classes
        self.norm = norm
        self.activation = activation
        self._ops: list[Op] = [Op("input", (), image)]
        self.input = Tensor(0, image, channels or Channels.prefix(image[0], image[0]))

    def graph(self) -> Graph:
        """What was built so far."""
        return Graph(tuple(self._ops))

    def conv(
        self,
        x: Tensor,
        name: str,
        out: Elastic | int,
        *,
        kernel: Elastic | int = 1,
        stride: int = 1,
        groups: int = 1,
        padding: str = "same",
        bias: bool = False,
    ) -> Tensor:
        """A convolution, dense or in `groups`; `name` is unique in the graph.

        Padding is "same", or "valid" for none.
        """
        out, kernel = Elastic.of(out), Elastic.of(kernel)
        for count, end in ((x.shape[0], "incoming"), (int(out), "outgoing")):
            if count % groups:
                raise SpaceError(
                    f"{name}: {count} {end} channels cannot be divided into {groups} groups.",
                    remedy=f"Use multiples of {groups}.",
                )
        channels = _grouped(int(out), int(out.largest), groups)
        inputs = x.channels
        if groups > 1:
            inputs = Channels.prefix(x.shape[0] // groups, inputs.extent // groups)
        window = self._window(x, name, kernel, stride, padding)
        slot = Slot(name, channels, inputs, int(kernel.largest))
        return self._add(
            Op(
                "conv",
                (x.position,),
                (int(out), *window.size),
                window.kernel,
                stride,
                window.padding,
                groups,
                bias,
                0,
                slot,
            ),
            channels,
        )

    def depthwise(
        self,
        x: Tensor,
        name: str,
        *,
        kernel: Elastic | int,
        stride: int = 1,
        bias: bool = False,
    ) -> Tensor:
        """A convolution of each channel by itself, with "same" padding."""
        kernel = Elastic.of(kernel)
        c = x.shape[0]
        window = self._window(x, name, kernel, stride, "same")
        slot = Slot(name, x.channels, None, int(kernel.largest))
        return self._add(
            Op(
                "conv",
                (x.position,),
                (c, *window.size),
                window.kernel,
                stride,
                window.padding,
                c,
                bias,
                0,
                slot,
            ),
            x.channels,
        )

    def finish_conv(self, x: Tensor, name: str, *, activate: bool | str = True) -> Tensor:
        """The space's norm (if it has one) and an activation behind a convolution called `name`.

        `activate` is True for the space's activation, False for none, or an activation's name.
        """
        if self.norm:
            slot = Slot(f"{name}.norm", x.channels)
            x = self._add(Op("norm", (x.position,), x.shape, slot=slot), x.channels)
        if isinstance(activate, str):
            return self.activate(x, activate)
        return self.activate(x) if activate else x

    def conv_unit(
        self,
        x: Tensor,
        name: str,
        out: Elastic | int,
        *,
        kernel: Elastic | int = 1,
        stride: int = 1,
        groups: int = 1,
        padding: str = "same",
        activate: bool | str = True,
    ) -> Tensor:
        """Convolution, norm and activation as the space has them (a bias where it has no norm)."""
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
        return self.finish_conv(x, name, activate=activate)

    def depthwise_unit(
        self,
        x: Tensor,
        name: str,
        *,
        kernel: Elastic | int,
        stride: int = 1,
        activate: bool | str = True,
    ) -> Tensor:
        """Depthwise convolution, norm and activation as the space has them."""
        x = self.depthwise(x, name, kernel=kernel, stride=stride, bias=not self.norm)
        return self.finish_conv(x, name, activate=activate)

    def activate(self, x: Tensor, kind: str | None = None) -> Tensor:
        """The space's activation, or the one that is named (`nas.graph.ACTIVATIONS`)."""
        kind = self.activation if kind is None else kind
        if kind not in ACTIVATIONS:
            raise SpaceError(
                f"There is no activation {kind!r}.",
                remedy=f"Use one of {', '.join(sorted(ACTIVATIONS))}.",
            )
        return self._add(Op(kind, (x.position,), x.shape), x.channels)

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        """The sum of two tensors of one shape."""
        if a.shape != b.shape:
            raise SpaceError(f"An addition needs equal shapes, not {a.shape} and {b.shape}.")
        return self._add(Op("add", (a.position, b.position), a.shape), a.channels)

    def multiply(self, x: Tensor, gate: Tensor) -> Tensor:
        """Each channel of `x` times the value that `gate` (`channels x 1 x 1`) has for it."""
        if gate.shape != (x.shape[0], 1, 1):
            raise SpaceError(f"A gate of {x.shape} needs {(x.shape[0], 1, 1)}, not {gate.shape}.")
        return self._add(Op("multiply", (x.position, gate.position), x.shape), x.channels)

    def concat(self, a: Tensor, b: Tensor) -> Tensor:
        """Channels of `a`, then those of `b`; each keeps its place in the widest version."""
        if a.shape[1:] != b.shape[1:]:
            raise SpaceError(f"A concatenation needs equal sizes, not {a.shape} and {b.shape}.")
        offset = a.channels.extent
        runs = a.channels.runs + tuple(
            (start + offset, stop + offset) for start, stop in b.channels.runs
        )
        channels = Channels(runs, offset + b.channels.extent)
        shape = (a.shape[0] + b.shape[0], *a.shape[1:])
        return self._add(Op("concat", (a.position, b.position), shape), channels)

    def shuffle(self, x: Tensor, groups: int) -> Tensor:
        """Channel shuffle (ShuffleNet): interleaves `groups` equal parts.

        The parts of `x` must be equally narrowed prefixes of equal parts of the widest version:
        interleaved, they are then a prefix of it again.
        """
        c = x.shape[0]
        if c % groups:
            raise SpaceError(f"{c} channels cannot be shuffled in {groups} equal groups.")
        channels = Channels.prefix(c, x.channels.extent)
        return self._add(Op("shuffle", (x.position,), x.shape, groups=groups), channels)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The two halves of the channels, each numbered afresh as a prefix of its widest half."""
        c, h, w = x.shape
        if c % 2:
            raise SpaceError(f"{c} channels cannot be split in two.")
        channels = Channels.prefix(c // 2, x.channels.extent // 2)
        first, second = (
            self._add(Op("slice", (x.position,), (c // 2, h, w), start=start), channels)
            for start in (0, c // 2)
        )
        return first, second

    def max_pool(
        self, x: Tensor, name: str, *, kernel: int, stride: int, padding: str = "same"
    ) -> Tensor:
        """Max pooling; with "valid" padding a last window may hang over the border."""
        return self._pool("max_pool", x, name, kernel, stride, padding)

    def avg_pool(
        self, x: Tensor, name: str, *, kernel: int, stride: int, padding: str = "same"
    ) -> Tensor:
        """Average pooling; the padding's zeros count."""
        return self._pool("avg_pool", x, name, kernel, stride, padding)

    def _pool(
        self, kind: str, x: Tensor, name: str, kernel: int, stride: int, padding: str
    ) -> Tensor:
        w = self._window(x, name, Elastic.of(kernel), stride, padding, crop=False, ceil=True)
        op = Op(kind, (x.position,), (x.shape[0], *w.size), w.kernel, stride, w.padding)
        return self._add(op, x.channels)

    def global_pool(self, x: Tensor) -> Tensor:
        """The mean over height and width."""
        return self._add(Op("global_pool", (x.position,), (x.shape[0], 1, 1)), x.channels)

    def linear(self, x: Tensor, name: str, out: Elastic | int) -> Tensor:
        """A fully connected layer with bias, on a vector."""
        out = Elastic.of(out)
        channels = Channels.prefix(int(out), int(out.largest))
        op = Op("linear", (x.position,), (int(out), 1, 1), bias=True)
        return self._add(op._replace(slot=Slot(name, channels, x.channels)), channels)

    def _window(
        self,
        x: Tensor,
        name: str,
        kernel: Elastic,
        stride: int,
        padding: str,
        *,
        crop: bool = True,
        ceil: bool = False,
    ) -> _Window:
        """Kernel size, padding and output size of a sliding window.

        A kernel of `k` reaches `k // 2` pixels to each side; on a map of `n` pixels everything
        beyond `n - 1` only ever meets "same" padding. A choice of a larger kernel is cropped to
        `2n - 1`, which computes exactly the same.
        """
        _, h, w = x.shape
        size = int(kernel)
        if size % 2 == 0 and padding == "same":
            raise SpaceError(
                f"{name}: kernel size {size} is even.",
                remedy='Use an odd kernel, or padding "valid".',
            )
        if padding == "same":
            seen = 2 * min(h, w) - 1
            if kernel.smallest > seen:
                raise SpaceError(
                    f"{name}: a kernel of {int(kernel.smallest)} is larger than its {h}x{w} input: "
                    "its outer taps would only ever meet padding.",
                    remedy=f"Use at most {seen}, fewer strides, or larger images.",
                )
            if crop:
                size = min(size, seen)
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
            # A last window may hang over the border, but has to start inside it.
            return min(-(-(extent - size) // stride) + 1, -(-extent // stride))

        return _Window(size, 0, (windows(h), windows(w)))

    def _add(self, op: Op, channels: Channels) -> Tensor:
        self._ops.append(op)
        return Tensor(len(self._ops) - 1, op.shape, channels)
