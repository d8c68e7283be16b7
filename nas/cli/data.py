"""`nas data`: what is in a dataset and what is wrong with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from nas.cli.options import Json, job_key, print_json
from nas.display import console

if TYPE_CHECKING:
    from nas.data.check import DataCheck
    from nas.data.dataset import ImageDataset

_MAX_CLASSES = 30
"""Classes that are shown; of more, those with the fewest images."""


def data(
    source: Annotated[str, typer.Argument(help="Name or path of the images.")],
    image_size: Annotated[int | None, job_key("data.image_size")] = None,
    class_folders: Annotated[str, job_key("data.class_folders")] = "auto",
    group: Annotated[str, job_key("data.group")] = "",
    on_duplicate: Annotated[str, job_key("data.on_duplicate")] = "warn",
    resize: Annotated[str, job_key("data.resize")] = "cover",
    as_json: Json = False,
) -> None:
    """Show what is in a dataset and what is wrong with it.

    Images by class and part, sizes, formats, unreadable files, rare classes, and duplicates within
    and across the parts. Nothing is changed. A job does the same check at its start.

    \b
    Example: nas data photos
    Example: nas data photos --group "([a-z]+)_[0-9]+" --on-duplicate group
    """
    from nas.data import load_dataset
    from nas.data.check import check_data

    with console.ProgressBars() as bars:
        bars.begin("images", "image")
        # Arguments of the command line are checked where they are used.
        loaded = load_dataset(
            source,
            image_size=image_size,
            class_folders=class_folders,  # type: ignore[arg-type]
            group=group,
            on_duplicate=on_duplicate,  # type: ignore[arg-type]
            resize=resize,  # type: ignore[arg-type]
            on_bad_image="skip",
            progress=bars.advance,
        )
        bars.begin("duplicates", "image")
        check = check_data(loaded, bars.advance)
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
        console.print_records(
            check.examples,
            {
                "duplicates": lambda each: each.first,
                "": lambda each: each.second,
                "parts": lambda each: " and ".join(dict.fromkeys(each.parts)),
                "classes": lambda each: " and ".join(dict.fromkeys(each.classes)),
                "pixels": lambda each: "equal" if each.is_exact else "nearly equal",
            },
            left=["", "parts", "classes", "pixels"],
        )
    for problem in check.problems:
        console.say(f"warning: {problem}")
    if not check.problems:
        console.say("nothing is wrong with these images")
