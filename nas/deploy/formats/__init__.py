"""The file formats that a model is exported to, by name.

A format is a subclass of `nas.deploy.formats.base.ModelFormat`. Its module imports the package that
the format needs only inside its methods, so that all formats can be listed without any of them.
"""

from __future__ import annotations

from importlib import import_module

from nas.deploy.formats.base import LoadedModel, ModelFormat
from nas.errors import RequestError

_CLASSES: dict[str, str] = {
    "torch": "nas.deploy.formats.torch:Torch",
    "onnx": "nas.deploy.formats.onnx:Onnx",
    "onnx-int8": "nas.deploy.formats.onnx:OnnxInt8",
    "openvino": "nas.deploy.formats.openvino:OpenVino",
    "openvino-int8": "nas.deploy.formats.openvino:OpenVinoInt8",
    "executorch": "nas.deploy.formats.executorch:ExecuTorch",
    "coreml": "nas.deploy.formats.coreml:CoreMl",
    "tvm": "nas.deploy.formats.tvm:Tvm",
    "tflite": "nas.deploy.formats.tflite:TfLite",
    "tflite-int8": "nas.deploy.formats.tflite:TfLiteInt8",
}
"""Module and class of each format by its name, such as `nas.deploy.formats.onnx:Onnx`."""

__all__ = [
    "LoadedModel",
    "ModelFormat",
    "all_formats",
    "format_names",
    "model_format",
]


def format_names() -> list[str]:
    """Return the names of all formats."""
    return list(_CLASSES)


def all_formats() -> list[ModelFormat]:
    """Return all formats, whether their packages are installed or not."""
    return [_create(name) for name in _CLASSES]


def model_format(name: str) -> ModelFormat:
    """Return a format by its name.

    Raises:
        RequestError: there is no such format, or its package is not installed. The remedy is the
            command that installs the package.
    """
    if name not in _CLASSES:
        raise RequestError(
            f"There is no format '{name}'.", remedy=f"Formats: {', '.join(_CLASSES)}."
        )
    result = _create(name)
    result.require_packages()
    return result


def _create(name: str) -> ModelFormat:
    module, _, cls = _CLASSES[name].partition(":")
    result: ModelFormat = getattr(import_module(module), cls)()
    return result
