"""`nas data`: what is in a dataset and what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nas.cli.options import Json, Plot, check_plot, job_key, print_json
from nas.display import console

if TYPE_CHECKING:
    from nas.data.check import DataCheck
    from nas.data.dataset import ImageDataset

_MAX_CLASSES = 30
"""Classes that are shown; of more, those with the fewest images."""

_MAX_PICTURED = 6
"""Pairs of duplicates in the figure."""


def data(
    source: Annotated[str, typer.Argument(help="Name or path of the images.")],
    image_size: Annotated[int | None, job_key("data.image_size")] = None,
    class_folders: Annotated[str, job_key("data.class_folders")] = "auto",
    group: Annotated[str, job_key("data.group")] = "",
    on_duplicate: Annotated[str, job_key("data.on_duplicate")] = "warn",
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Show what is in a dataset and what is wrong with it.

    Images by class and part, sizes, formats, unreadable files, rare classes, and duplicates within
    and across the parts. Nothing is changed. A job does the same check at its start.

    \b
    Example: nas data photos
    Example: nas data photos --group "([a-z]+)_[0-9]+" --on-duplicate group --plot data.png
    """
    from nas.data import load_dataset
    from nas.data.check import check_data

    check_plot(plot)
    with console.ProgressBars() as bars:
        bars.begin("images", "image")
        # Arguments of the command line are checked where they are used.
        loaded = load_dataset(
            source,
            image_size=image_size,
            class_folders=class_folders,  # type: ignore[arg-type]
            group=group,
            on_duplicate=on_duplicate,  # type: ignore[arg-type]
            on_bad_image="skip",
            progress=bars.advance,
        )
        bars.begin("duplicates", "image")
        check = check_data(loaded, bars.advance)
    if plot is not None:
        _draw(loaded, check, plot)
    if as_json:
        print_json(check.to_json())
    else:
        _show(loaded, check)


def _show(data: ImageDataset, check: DataCheck) -> None:
    console.say(data.summary)
    parts = [part for part in check.counts if any(check.counts[part].values())]
    classes = sorted(check.class_counts, key=lambda name: check.class_counts[name])
    shown = classes[:_MAX_CLASSES] if len(classes) > _MAX_CLASSES else list(check.class_counts)
    console.print_table(
        ["class", *parts, "all"],
        [
            [name, *(check.counts[part][name] for part in parts), check.class_counts[name]]
            for name in shown
        ],
    )
    if len(shown) < len(classes):
        console.say(f"the {len(shown)} of {len(classes)} classes with the fewest images")
    formats = ", ".join(f"{count} {kind}" for kind, count in check.formats.items())
    console.say(f"sizes: {' to '.join(check.sizes)}" + (f"; files: {formats}" if formats else ""))
    for each in check.skipped[:3]:
        console.say(f"left out, unreadable: {each}")
    console.say(
        f"duplicates: {check.exact} images equal an earlier one, {check.near} pairs are nearly "
        f"equal; {check.left_out} images are left out because they would be on two sides of a split"
    )
    if check.examples:
        console.print_table(
            ["duplicates", "", "parts", "classes", "pixels"],
            [
                (
                    each.first,
                    each.second,
                    " and ".join(dict.fromkeys(each.parts)),
                    " and ".join(dict.fromkeys(each.classes)),
                    "equal" if each.is_exact else "nearly equal",
                )
                for each in check.examples
            ],
            left=["", "parts", "classes", "pixels"],
        )
    for problem in check.problems:
        console.say(f"warning: {problem}")
    if not check.problems:
        console.say("nothing is wrong with these images")


def _draw(data: ImageDataset, check: DataCheck, path: Path) -> None:
    """Draw the images by class and part, and some pairs of duplicates."""
    import matplotlib as mpl
    import numpy as np
    from matplotlib.figure import Figure

    from nas.display import plotting

    inventory = data.inventory
    assert inventory is not None, "a loaded dataset has one"
    pictured = check.examples[:_MAX_PICTURED]
    with mpl.rc_context(plotting.STYLE):
        figure = Figure(figsize=(12.5, 6), layout="constrained")
        grid = figure.add_gridspec(2, 2 * _MAX_PICTURED // 2, height_ratios=(3, 1))
        bars = figure.add_subplot(grid[0, :])
        bottom = np.zeros(len(check.class_counts))
        for index, (part, counts) in enumerate(check.counts.items()):
            values = np.array([counts[name] for name in check.class_counts])
            colour = plotting.group_style(index)["color"]
            bars.bar(np.arange(len(values)), values, bottom=bottom, label=part, color=colour)
            bottom += values
        names = list(check.class_counts)
        if len(names) <= _MAX_CLASSES:
            bars.set_xticks(range(len(names)), names, rotation=30, ha="right")
        bars.set(ylabel="images", xlabel=f"{len(names)} classes")
        bars.legend(frameon=False)
        for index, pair in enumerate(pictured):
            axes = figure.add_subplot(grid[1, index])
            at = [inventory.locations.index(each) for each in (pair.first, pair.second)]
            axes.imshow(np.concatenate([inventory.pixels[position] for position in at], axis=1),
                        cmap="gray")  # fmt: skip
            axes.set_title(" and ".join(dict.fromkeys(pair.parts)), fontsize=8)
            axes.axis("off")
        figure.suptitle(
            f"{data.source}: {sum(check.class_counts.values())} images", x=0.01, ha="left"
        )
        plotting.save(figure, path)
