"""Changes of what a runtime can do, while a test runs."""

from dataclasses import replace
from typing import Any

import pytest

from nas.latency.runtime import Runtime


def change(patch: pytest.MonkeyPatch, runtime: type[Runtime], **changes: Any) -> None:
    """Change some capabilities of a runtime."""
    patch.setattr(runtime, "capabilities", replace(runtime.capabilities, **changes))
