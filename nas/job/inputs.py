"""What a job names: its images, spaces, kernels and device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from nas.data import ImageDataset, load_dataset
from nas.display.formatting import format_size, listed
from nas.errors import JobFileError, MissingKernelError, RequestError, TableError
from nas.figures import COUNTS, Figure
from nas.graph import DEFAULT_DTYPE
from nas.latency import Kernel, LatencyTable, Runtime, configured_runtime, space_kernels
from nas.latency.kit import KitDevice
from nas.run.objectives import searched_figures
from nas.run.progress import JobProgress
from nas.run.settings import JobSettings
from nas.space import SearchSpace, load_definition
from nas.space.library import find_reference
from nas.space.restriction import AT_WIDTHS

if TYPE_CHECKING:
    from nas.pretrained import PublishedWeights


def check_device(settings: JobSettings) -> None:
    """Check that the runtime of a job has the settings of its device, without opening it.

    Raises:
        RequestError: it does not have them, or no predictions or figures for them.
    """
    device = settings.device
    if len(device.dtypes) > 1 and device.tables.endswith(".jsonl"):
        raise RequestError(
            f"[device] tables is the file {device.tables}, and two dtypes have two tables.",
            remedy="Name their folder.",
        )
    if len(device.dtypes) > 1 and settings.search.device:
        raise RequestError(
            "A job with two values of [device] dtype has a [[search.device]].",
            remedy="Leave one of the two out.",
        )
    for dtype in device.dtypes:
        runtime = configured_runtime(device.runtime, **device.runtime_options(dtype))
        runtime.check_settings()
        runtime.check_batch(device.batch)
        if isinstance(runtime, KitDevice) and device.batch > 1:
            raise RequestError(
                f"[device] batch is {device.batch}, and a kit times networks with one image.",
                remedy="Use 1.",
            )
        _check_figures(settings, dtype, COUNTS | {each.name: each for each in runtime.figures})


def _check_figures(settings: JobSettings, dtype: str, known: Mapping[str, Figure]) -> None:
    """Raise RequestError for an objective or a limit that a device does not know."""
    search = settings.search
    for name in searched_figures(search, ()):
        if name not in known:
            raise RequestError(
                f"The search uses {name}, which runtime '{settings.device.runtime}' does not know "
                f"with dtype {dtype}.",
                remedy=f"Leave its limit and objective out. Known are {', '.join(known)}.",
            )
    for name in (*search.also_minimize, *search.also_maximize):
        if known[name].is_maximised != (name in search.also_maximize):
            better, key = ("More", "maximize") if known[name].is_maximised else ("Less", "minimize")
            raise RequestError(
                f"{better} {name} is better, and the search is for the opposite.",
                remedy=f"Put it into search.also_{key} alone.",
            )


def check_networks(settings: JobSettings) -> None:
    """Check the exits, weights and networks that a job names, before anything is written.

    Raises:
        JobFileError, WeightsError: see `load_published`.
        RequestError: the device does not run networks with an exit.
        SpaceError: neither a space of the job nor one that ships has a network of this name, or a
            space has no such stage for an exit.
    """
    device = settings.device
    for each in settings.space:
        if each.exit is None:
            continue
        if device.dtypes != (DEFAULT_DTYPE,) or device.batch > 1:
            raise RequestError(
                f"[[space]] has exit = {each.exit}, and [device] dtype {listed(device.dtypes)} and "
                f"batch {device.batch}: an exit decides image by image, in {DEFAULT_DTYPE}.",
                remedy=f'Use dtype = "{DEFAULT_DTYPE}" and batch = 1, or leave exit out.',
            )
        load_definition(each.name).with_exit(each.exit)
    names = settings.finish.references or ()
    has_weights = any(each.starts_from_weights for each in settings.space)
    if not (names or has_weights or settings.data.image_size == "auto"):
        return
    spaces = {str(at): load_definition(each.name) for at, each in enumerate(settings.space)}
    load_published(settings, spaces)
    own = {row.name for space in spaces.values() for row in space.references}
    for name in names:
        if name not in own:
            find_reference(name)


def load_images(
    settings: JobSettings,
    progress: JobProgress,
    *,
    image_size: int | None = None,
    write_cache: bool = True,
) -> ImageDataset:
    """Return the images of a job, decoded and split.

    Args:
        settings: the settings of the job.
        image_size: height and width in pixels; by default that of the settings, or that of the
            source if theirs is "auto".
        progress: receives the progress.
        write_cache: whether decoded images may be written to the cache.

    Raises:
        DataError: the images are missing, or cannot be used.
    """
    progress.begin("images", "image")
    asked = settings.data.image_size
    return load_dataset(
        settings.data.source,
        image_size=image_size or (None if asked == "auto" else asked),
        seed=settings.seed,
        **settings.data.load_options,
        unknown=settings.data.unknown,
        progress=progress.advance,
        write_cache=write_cache,
    )


def _by_name(spaces: Iterable[SearchSpace]) -> dict[str, SearchSpace]:
    named: dict[str, SearchSpace] = {}
    for space in spaces:
        if space.name in named:
            raise JobFileError(
                f"Two spaces of the job are called {space.name}.",
                remedy="Give each [[space]] once, and each SPACE a name of its own.",
            )
        named[space.name] = space
    return named


def load_published(
    settings: JobSettings, spaces: Mapping[str, SearchSpace]
) -> dict[str, PublishedWeights]:
    """Return the weights from which supernets of a job start, by space.

    They are those of published networks, and those of trained ones of runs.

    Args:
        settings: the settings of the job.
        spaces: its spaces, in their order.

    Raises:
        JobFileError: none are published, and `image_size` is "auto"; or a run lacks the network.
        WeightsError: a file is damaged, or of a network that is not in its space.
    """
    has_published = any(each.pretrained for each in settings.space)
    if not has_published and settings.data.image_size == "auto":
        raise JobFileError(
            'image_size = "auto" compares published weights, and no [[space]] has pretrained.',
            remedy="Write a number of pixels, or name a file of weights with pretrained.",
        )
    weights: dict[str, PublishedWeights] = {}
    for each, (name, space) in zip(settings.space, spaces.items(), strict=True):
        if each.pretrained is not None:
            from nas.pretrained import read_weights  # Imports torch.

            file, conventions = each.pretrained.file, each.pretrained.conventions
            weights[name] = read_weights(file, conventions=conventions, spaces=[space])
        elif each.within is not None:
            from nas.job.within import read_trained_weights  # Imports torch.

            weights[name] = read_trained_weights(each.within, space)
    return weights


class JobSpaces(NamedTuple):
    """The search spaces of a job.

    A space with published weights is restricted to the networks that the published one contains. In
    the whole space, the weights of other networks, and of the teacher, would be random ones. With
    few images, all networks have the published widths, too. A space with the weights of a trained
    network of a run is restricted to what is left of that one by pruning.

    Attributes:
        named: the spaces that the job names, by name and in its order.
        searched: the spaces that it searches, likewise; each is that of `named`, or a part of it.
        published: weights from which supernets start, by name of the searched space.
    """

    named: dict[str, SearchSpace]
    searched: dict[str, SearchSpace]
    published: dict[str, PublishedWeights]


def load_job_spaces(
    settings: JobSettings, data: ImageDataset, sources: Sequence[str | Path] = ()
) -> JobSpaces:
    """Return the spaces of a job, adapted to its images, and their published weights.

    Args:
        settings: the settings of the job.
        data: its images.
        sources: names or files of the spaces; by default those that the job names.

    Raises:
        JobFileError: two spaces have the same name; or see `load_published`.
        WeightsError: see `load_published`.
    """
    from nas.supernet.recipe import MANY_IMAGES  # Imports torch.

    sizes = {"image_size": data.image_size, "channels": data.channels, "classes": len(data.classes)}
    sources = sources or [each.name for each in settings.space]
    loaded = _by_name(load_definition(source).adapt(**sizes) for source in sources)
    named = {}
    for each, (name, space) in zip(settings.space, loaded.items(), strict=True):
        if each.resolutions is not None:
            space = space.at_resolutions(each.resolutions)
        named[name] = space if each.exit is None else space.with_exit(each.exit)
    weights = load_published(settings, named)
    has_few = len(data.train) < MANY_IMAGES
    searched = []
    for name, space in named.items():
        if name not in weights:
            searched.append(space)
            continue
        row = weights[name].reference
        if row.is_trained:
            from nas.job.within import require_channels  # Imports torch.

            require_channels(weights[name], data)
            space = named[name] = space.with_trained(row.name, row.choices, row.resolution)
        # The channels of a trained network are ordered by importance, so that widths can shrink.
        searched.append(space.within(row.name, same_widths=has_few and not row.is_trained))
    published = {
        space.name: weights[name]
        for name, space in zip(named, searched, strict=True)
        if name in weights
    }
    return JobSpaces(named, _by_name(searched), published)


def describe_restriction(whole: SearchSpace, space: SearchSpace, network: str) -> str:
    """Return what `load_job_spaces` did to a space, as a clause; empty if it is the whole one."""
    if space is whole:
        return ""
    widths = ", at its widths" if space.name.startswith(AT_WIDTHS) else ""
    return (
        f"the space {whole.name} is restricted to the networks that {network} contains{widths}: "
        f"{format_size(space.size)} of {format_size(whole.size)}"
    )


def needed_kernels(spaces: Iterable[SearchSpace], runtime: Runtime, batch: int) -> list[Kernel]:
    """Return every kernel that the architectures of some spaces can need, once each."""
    kernels: dict[Kernel, None] = {}
    for space in spaces:
        kernels.update(dict.fromkeys(space_kernels(space, runtime, batch)))
    return list(kernels)


def require_complete(table: LatencyTable, spaces: Iterable[SearchSpace], batch: int) -> None:
    """Raise TableError for a table that cannot predict all architectures of the spaces."""
    spaces = list(spaces)
    remedy = "Run `nas table build` for these spaces and sizes on that device."
    try:
        needed = needed_kernels(spaces, table.runtime, batch)
    except MissingKernelError as error:
        raise TableError(error.message, remedy=remedy) from None
    missing = table.missing(needed)
    if missing:
        raise TableError(
            f"{table.path} lacks {len(missing)} of {len(needed)} kernels of "
            f"{', '.join(space.name for space in spaces)}, the first: {missing[0]}.",
            remedy=remedy,
        )
    if table.lacks_dispatch():
        raise TableError(f"{table.path} has no dispatch overhead.", remedy=remedy)
