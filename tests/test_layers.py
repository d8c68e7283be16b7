"""Which module imports which: lower layers never import higher ones, and files form no circles."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import nas

LAYERS = (
    {"errors", "figures", "graph"},
    {"machine", "plugins", "statistics"},
    {"files"},
    {"arguments", "display", "kernels", "transports"},
    {"data", "schedules", "space"},
    {"torch_kernels"},
    {"torch_network"},
    {"pretrained", "quantisation"},
    {"latency", "onnx_model", "search", "supernet", "tflite_model"},
    {"run", "runtimes"},
    {"deploy"},
    {"lifecycle", "plans"},
    {"report"},
    {"job"},
    {"opened_run"},
    {"__init__"},
    {"cli"},
    {"__main__"},
)
"""Modules and packages of `nas` from the lowest layer up. Those of one layer do not know others."""

CIRCLES = ("nas.space", "nas.runtimes.tvm")
"""Packages of which some files import each other."""


def imports() -> dict[str, set[str]]:
    """Return the modules of the package that each of its modules imports, also in functions."""
    root = Path(nas.__file__).parent
    paths = {
        ".".join(("nas", *path.relative_to(root).with_suffix("").parts)): path
        for path in root.rglob("*.py")
    }
    modules = {name.removesuffix(".__init__") for name in paths}
    result: dict[str, set[str]] = {}
    for name, path in paths.items():
        imported = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {each.name for each in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                below = {f"{node.module}.{each.name}" for each in node.names}
                imported |= below & modules or {node.module}
        result[name] = {each for each in imported if each in modules and each != name}
    return result


IMPORTS = imports()


def layer_of(module: str) -> int:
    part = "__init__" if module == "nas" else module.split(".")[1]
    return next(at for at, parts in enumerate(LAYERS) if part in parts)


def test_lower_layers_do_not_import_higher_ones():
    wrong = {
        (module, other)
        for module, others in IMPORTS.items()
        for other in others - {"nas"}  # For `nas.__version__`.
        if module.split(".")[1] != other.split(".")[1] and layer_of(other) >= layer_of(module)
    }
    assert wrong == set()


def test_files_do_not_import_each_other_in_circles():
    def unit(module):
        return next((each for each in CIRCLES if module.startswith(f"{each}.")), module)

    packages = {each.removesuffix(".__init__") for each in IMPORTS if each.endswith(".__init__")}
    graph: dict[str, set[str]] = {}
    for module, others in IMPORTS.items():
        own = unit(module)
        # A package hands on names of its files, which may import it in turn.
        graph.setdefault(own, set()).update(set(map(unit, others - packages)) - {own})
    TopologicalSorter(graph).prepare()


CHAINS = [
    [
        (
            ("nas", "nas.cli"),
            ("matplotlib", "numpy", "optuna", "pandas", "pyarrow", "torch", "tvm"),
        ),
        (("nas.space", "nas.space.summary"), ("matplotlib", "optuna", "pandas", "torch", "tvm")),
        (("nas.latency", "nas.runtimes.on_device.client"), ("optuna", "torch", "tvm")),
        (("nas.data",), ("optuna", "pyarrow", "torch", "tvm")),
        (("nas.deploy.formats",), ("onnx", "onnxruntime", "openvino", "optuna", "torch", "tvm")),
        (("nas.runtimes.litert.runtime", "nas.quantisation.network"), ("torch", "tvm")),
        (("nas.search", "nas.report.page", "nas.onnx_model"), ("torch", "tvm")),
    ],
    [
        (
            (*sorted(each for each in IMPORTS if each.startswith("nas.run.")), "nas.opened_run"),
            ("PIL", "torch", "tvm"),
        ),
    ],
    [
        (("nas.pretrained", "nas.supernet.training"), ("optuna", "tvm")),
        (("nas.torch_network",), ("onnx",)),
    ],
]
"""Modules that are imported one after the other, with the libraries that are not loaded then."""


@pytest.mark.parametrize("chain", [*CHAINS[:2], pytest.param(CHAINS[2], marks=pytest.mark.slow)])
def test_modules_do_not_bring_in_libraries_that_they_do_not_need(chain):
    code = ["import sys"]
    for modules, libraries in chain:
        code.append(f"import {', '.join(each.removesuffix('.__init__') for each in modules)}")
        code.append(f"print([m for m in {libraries!r} if m in sys.modules])")
    command = [sys.executable, "-c", "\n".join(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]"] * len(chain)
