"""The README leads to every page in order, and shows a current picture."""

import re
from pathlib import Path

from tests import markdown

README = markdown.read("README.md")


def numbered_pages(text: str, folder: str) -> list[str]:
    """Return the pages of a numbered list, in order, without `folder`."""
    return re.findall(rf"^\d+\. \[[^\]]+\]\({folder}([a-z-]+\.md)\)", text, re.MULTILINE)


def test_readme_and_index_list_the_same_pages_in_the_same_order():
    listed = numbered_pages(README, "docs/")
    assert listed == numbered_pages(markdown.read("docs/README.md"), "")
    assert listed[0] == "data.md"
    assert listed[-1] == "reliability.md"


def test_every_page_is_in_the_index():
    listed = {Path(link).name for link in markdown.links("docs/README.md")}
    assert {Path(page).name for page in markdown.pages() if page.startswith("docs/")} <= {
        *listed,
        "README.md",
    }


def test_pages_lead_to_the_one_before_and_the_one_after():
    listed = numbered_pages(README, "docs/")
    for before, page, after in zip(
        ["README.md", *listed], listed, [*listed[1:], "README.md"], strict=False
    ):
        foot = markdown.read(f"docs/{page}").rpartition("\n---\n")[2]
        for other in (before, after, "README.md"):
            assert f"]({other})" in foot, f"docs/{page} does not lead to {other}"


def test_pictures_are_drawn_by_commands_in_the_repository():
    assert README.index("](results/study/study.png)") < README.index("](docs/front.png)")
    code = markdown.inline_code("README.md")
    assert "python -m tests.benchmarks.front_picture results/example docs/front.png" in code
    assert "python -m tests.benchmarks.study results/study" in code
