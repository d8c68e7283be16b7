"""Retired words do not come back: the field's term stands in place of each."""

import io
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

RETIRED = {
    "found": "the thing's own name, or result",
    "far": "cold",
    "far_us": "cold_us",
    "farther_us": "cold_penalty_us",
    "far_share": "miss_fraction",
    "near_us": "warm_us",
    "footprint": "cache_model",
    "kept": "cache, saved",
    "Kept": "cache",
    "Ways": "TimedKernel",
    "Drawer": "cache",
    "Picked": "cache",
    "stock": "loader, prefetch",
    "turns": "core_scheduling",
    "place": "device",
    "Place": "Device",
    "Here": "LocalDevice",
    "nest": "loop_nest",
    "border": "padding",
    "movement": "data_movement",
    "beliefs": "posterior",
    "Beliefs": "posterior model",
    "Prospects": "candidates",
    "promise": "acquisition",
    "suppose": "fantasize",
    "VAIN": "a limit with its unit",
    "GROWTH": "a limit with its unit",
    "APPROACH": "a limit with its unit",
    "beyond": "constraint violation",
    "approached": "repair",
    "told": "on_message, progress",
    "watch": "progress",
    "team": "process group",
    "meet": "barrier",
    "judge": "scorer",
    "truth": "ground truth",
    "Lesson": "subnet task",
    "Look": "evaluation",
    "first_look": "evaluate_quickly",
    "Word": "op sequence",
    "words": "op sequence, text",
    "Language": "automaton",
    "Move": "transition",
    "pace": "slowdown, speed",
    "Pace": "slowdown, speed",
}
"""Identifiers that no module uses, and what stands in their place."""


def identifiers(path: Path) -> dict[str, int]:
    """Return every identifier in a Python file with the line where it is first used."""
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline)
    lines: dict[str, int] = {}
    for token in tokens:
        if token.type == tokenize.NAME:
            lines.setdefault(token.string, token.start[0])
    return lines


MODULES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "nas").rglob("*.py"))


@pytest.mark.parametrize("module", MODULES)
def test_module_uses_no_retired_identifier(module):
    used = identifiers(ROOT / module)
    retired = {name: used[name] for name in RETIRED.keys() & used.keys()}
    assert not retired, "\n".join(
        f"{module}:{line}: {name} is called: {RETIRED[name]}" for name, line in retired.items()
    )
