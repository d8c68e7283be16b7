"""What code for a board is compiled for, as TVM's code generator takes it."""

from __future__ import annotations

import re

import tvm
from tvm.target import codegen

from nas.errors import RequestError
from nas.runtimes.tvm.rpc.address import RpcTarget

_ALSO = re.compile(r"arm64|armv\d.*|thumbv\d.*|amd64|i[3-6]86")
"""Architectures that LLVM knows by another name."""

_ASK = (
    "On the board: python -c 'from tvm.target import codegen as c; "
    "print(c.llvm_get_system_triple(), c.llvm_get_system_cpu())'"
)


def compiled_for(target: RpcTarget) -> tvm.target.Target:
    """The code generator's target.

    LLVM itself would only warn, and compile for some other processor. Raises RequestError for a
    triple, a processor or a feature that it does not know.
    """
    architecture = target.triple.partition("-")[0]
    if architecture not in codegen.llvm_get_targets() and not _ALSO.fullmatch(architecture):
        raise RequestError(
            f"TVM compiles for no architecture '{architecture}', which triple={target.triple} "
            "starts with.",
            remedy=_ASK,
        )
    if not codegen.llvm_is_valid_cpu(target.cpu, target.triple):
        raise RequestError(f"LLVM knows no {architecture} processor '{target.cpu}'.", remedy=_ASK)
    code = tvm.target.Target(
        {
            "kind": "llvm",
            "mtriple": target.triple,
            "mcpu": target.cpu,
            **({"mattr": list(target.features)} if target.features else {}),
        }
    )
    for feature in target.features:
        if codegen.llvm_cpu_has_features(feature[1:], code) != (feature[0] == "+"):
            raise RequestError(
                f"LLVM cannot give {target.cpu} the feature '{feature}'.",
                remedy="Use the names that LLVM has for features, or leave it out.",
            )
    return code
