"""A folder of an exported model without its training: that of the example run."""

import shutil
from pathlib import Path

from nas.deploy.folder import ModelFolder
from nas.deploy.scripts import run_script
from nas.files.documents import to_json
from nas.run.model_card import CARD_FILE
from tests.conftest import EXAMPLE


def onnx_folder(path: Path) -> ModelFolder:
    """Return a copy of a model of the example run with one file of a network, `model.onnx`."""
    shutil.copytree(EXAMPLE / "models" / "jc80", path)
    folder = ModelFolder(path)
    files = {file.format: file for file in folder.card.files}
    card = folder.card.model_copy(update={"files": (files.pop("onnx"),)})
    with folder.staging() as staging:
        (staging / CARD_FILE).write_text(to_json(card))
        folder.publish(staging, replaced={file.file for file in files.values()})
    return folder


def model_with_script(path: Path) -> ModelFolder:
    """Return a copy of a model of the example run whose `run.py` runs its one file."""
    folder = onnx_folder(path)
    card = folder.card
    assert card.script is not None
    script = card.script.model_copy(update={"file": "model.onnx"})
    with folder.staging() as staging:
        (staging / CARD_FILE).write_text(to_json(card.model_copy(update={"script": script})))
        (staging / "run.py").write_text(run_script("model.onnx"))
        folder.publish(staging)
    return folder
