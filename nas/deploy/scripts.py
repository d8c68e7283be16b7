"""`run.py` of a model folder: a script that classifies image files without this package."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from nas.data import image_reading
from nas.deploy import script_check, script_loaders, script_log, script_steps
from nas.deploy.formats import find_format
from nas.errors import ExportError, RequestError
from nas.files import foreign
from nas.machine import home
from nas.machine.processes import python_environment

RUN_LIMIT_SECONDS = 300.0
"""How long the script may take for a few dozen images; importing a runtime takes seconds."""

_IMAGES = ("numpy", f"pillow>={'.'.join(map(str, image_reading.OLDEST['Pillow']))}")

_START = "from __future__ import annotations\n"

_OWN_IMPORTS = r"(?:^from nas\.\S+ import (?:\([^)]*\)|.+)\n)+"


def script_requirements(name: str) -> tuple[str, ...]:
    """Return the packages that the script imports, as pip takes them, to run files of a format.

    There are none if it does not run them.
    """
    with suppress(RequestError):  # A file of an earlier export may be of a plug-in that is gone.
        if own := find_format(name).requirements:
            return (*own, *_IMAGES)
    return ()


def script_format(formats: Iterable[str]) -> str | None:
    """Return the first format that the script runs; None if it runs none of them."""
    return next((name for name in formats if script_requirements(name)), None)


def run_script(default: str, formats: Iterable[str] = ()) -> str:
    """Return the text of `run.py`.

    Args:
        default: file of the network that it runs if no other is named.
        formats: formats of the files that it should run, if these bring functions of their own.
    """
    template = Path(__file__).with_name("run_template.py")
    script = script_with_loaders(template, script_check, formats=formats)
    return script.replace('"model.onnx"', f'"{default}"')


def script_with_loaders(template: Path, *modules: ModuleType, formats: Iterable[str] = ()) -> str:
    """Return the text of a script that loads exported files, see `standalone` and `run_script`."""
    common = (image_reading, foreign, home, script_steps, script_log, script_loaders)
    loaders = [find_format(name).script_loader for name in formats if script_requirements(name)]
    return standalone(template, *common, *modules, texts=[each for each in loaders if each])


def standalone(template: Path, *modules: ModuleType, texts: Iterable[str] = ()) -> str:
    """Return the text of a script that runs without this package.

    Args:
        template: file of the script, which imports from this package in one block.
        modules: the modules that it imports, and those that these import from this package, whose
            texts take the place of the imports.
        texts: further texts.
    """
    own = [_without_imports(inspect.getsource(module).partition(_START)[2]) for module in modules]
    above, below = re.split(_OWN_IMPORTS, template.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return "\n\n\n".join([above.rstrip(), *own, *texts, below.lstrip()])


def _without_imports(text: str) -> str:
    """Return the text of a module without its imports from this package."""
    return re.sub(_OWN_IMPORTS, "", text, flags=re.MULTILINE).strip()


def script_logits(
    script: Path, options: Sequence[str], images: Sequence[str], folder: Path
) -> list[Any]:
    """Run a script as a user would, and return the logits that it computes for image files.

    Args:
        script: path of the `run.py`.
        options: its options beside `--json`.
        images: names of the image files in `folder`.
        folder: working directory of the script.

    Returns:
        The logits of each image, or a text that says why the script does not read it. Of a cascade,
        they are the logits of each network that classified the image.

    Raises:
        ExportError: the script does not run.
    """
    command = [sys.executable, str(script.absolute()), "--json", *options]
    try:
        done = subprocess.run(
            [*command, *images],
            cwd=folder,
            env=python_environment(),
            capture_output=True,
            check=False,
            timeout=RUN_LIMIT_SECONDS,
        )
        results = json.loads(done.stdout)
        return [result.get("logits") or result["error"] for result in results]
    except subprocess.TimeoutExpired:
        reason = f"did not answer within {RUN_LIMIT_SECONDS:.0f} s"
    except ValueError:  # It printed no JSON.
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["nothing"]
        reason = f"ended with status {done.returncode} and wrote: {lines[-1][:300]}"
    raise ExportError(f"{script.name} {reason}.", remedy="Use the file of the network without it.")
