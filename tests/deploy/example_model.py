"""A folder of an exported model without its training: that of the example run."""

import shutil
from pathlib import Path

from nas.deploy.folder import ModelFolder
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
