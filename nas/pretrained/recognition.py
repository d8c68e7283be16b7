"""Recognises which published network a file holds, and which of its tensors are the network's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch

from nas.errors import WeightsError
from nas.files.documents import shortened
from nas.graph import Graph
from nas.pretrained.layers import (
    FileLayer,
    Signature,
    difference,
    op_signature,
    text_of,
    weighted_ops,
    with_outputs,
)
from nas.pretrained.state_dicts import Part, StateDict, layers_beside, left_out, modules
from nas.pretrained.weights_file import FileContent, WeightsFile
from nas.space import Reference, SearchSpace

MAX_NAMED = 5
"""Most networks of a file that a message names."""

_LARGER_NETWORK = re.compile(r"(^|\.)(backbone|aux_classifier|rpn|roi_heads|segmentation)\.")
"""Names of tensors in networks for detection or segmentation."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A published network that a file is compared with."""

    space: SearchSpace
    reference: Reference
    graph: Graph

    @cached_property
    def signatures(self) -> list[Signature]:
        """Signatures of the network's layers in the order in which they run."""
        return [op_signature(self.graph, op) for op in weighted_ops(self.graph)]

    def has_layers_of(self, layers: Sequence[FileLayer]) -> bool:
        """Return whether the network has the layers of a file, in any order."""
        if len(layers) != len(self.signatures):
            return False
        missing, extra, _ = difference(self.signatures_for(layers), layers)
        return missing is None and extra is None

    def likeness(self, layers: Sequence[FileLayer]) -> float:
        """Return the share of layers that the network and a file have in common."""
        signatures = self.signatures_for(layers)
        return difference(signatures, layers)[2] / max(len(signatures), len(layers))

    def signatures_for(self, layers: Sequence[FileLayer]) -> list[Signature]:
        """Return the signatures with as many classes as the classifier of a file has.

        They are those of the published network if the file has no such classifier.
        """
        signatures = self.signatures
        missing, extra, common = difference(signatures, layers)
        if extra is not None and missing == len(signatures) - 1 == common:
            adapted = with_outputs(signatures[-1], extra.signature[0][1][0])
            if adapted == extra.signature:
                return [*signatures[:-1], adapted]
        return signatures


class Recognised(NamedTuple):
    """The network that a file holds.

    Attributes:
        file: the file, with the entry of the network and what is left out.
        layers: layers of the network in the order of the file.
        fitting: names of the published networks that have such layers, at least one.
    """

    file: WeightsFile
    layers: list[FileLayer]
    fitting: list[str]


def recognise(
    content: FileContent, candidates: Mapping[str, Candidate], wanted: str | None
) -> Recognised:
    """Return the network that a file holds. Of several, averaged weights go first.

    Args:
        content: tensors of the file.
        candidates: the published networks by name.
        wanted: name of the network that the file should hold; None for any.

    Raises:
        WeightsError: the file holds none of the networks, holds layers beside one that may be a
            part of it, or holds several networks.
    """

    def fitting(layers: Sequence[FileLayer]) -> list[str]:
        return [name for name, each in candidates.items() if each.has_layers_of(layers)]

    networks = {
        state: modules(state, lambda layers: bool(fitting(layers))) for state in content.state_dicts
    }
    problems: list[WeightsError] = []
    usable: list[Part] = []
    for state, parts in networks.items():
        extra = next(layers_beside(state, parts), None) if parts else None
        own = [part for part in parts if wanted in (None, *fitting(part.layers))]
        if extra is None:
            usable += own
        elif own and state.problem is not None:
            problems.append(state.problem.error(content.file.path))
        elif own:
            problems.append(_beside_error(content.file, own[0], fitting(own[0].layers), extra))
    averaged = [part for part in usable if part.is_averaged]
    different = _different(averaged or usable)
    if len(different) > 1:
        raise _several_error(content.file, {part: fitting(part.layers) for part in different})
    if not different:
        raise problems[0] if problems else _no_network_error(content, networks, candidates, wanted)
    (part,) = different
    beside = [*content.others(part.state), *left_out(part, networks[part.state])]
    file = content.file._replace(entry=part.state.entry, left_out=tuple(dict.fromkeys(beside)))
    return Recognised(file, part.layers, fitting(part.layers))


def _different(parts: Sequence[Part]) -> list[Part]:
    """Return the parts without those that have the same tensors as an earlier one."""
    different: list[Part] = []
    for part in parts:
        if not any(_are_equal(part, other) for other in different):
            different.append(part)
    return different


def _are_equal(part: Part, other: Part) -> bool:
    return len(part.layers) == len(other.layers) and all(
        first.signature == second.signature
        and all(torch.equal(first.tensors[name], second.tensors[name]) for name in first.tensors)
        for first, second in zip(part.layers, other.layers, strict=True)
    )


def _several_error(file: WeightsFile, parts: Mapping[Part, Sequence[str]]) -> WeightsError:
    """Return the error for a file of several networks, of which nothing says which is meant."""
    names = [f"{shortened(part.name)} ({fitting[0]})" for part, fitting in parts.items()]
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    remedy = "Write the weights of one of them alone."
    if len({fitting[0] for fitting in parts.values()}) == len(parts):
        remedy = "State which network is meant, or write the weights of one of them alone."
    return WeightsError(
        f"{file.path} holds several networks: {', '.join(names[:MAX_NAMED])}{more}.", remedy=remedy
    )


def _beside_error(
    file: WeightsFile, part: Part, fitting: Sequence[str], extra: FileLayer
) -> WeightsError:
    """Return the error for layers beside a network, which may be a part of a larger one."""
    where = f" in {shortened(part.name)}" if part.name else ""
    message = (
        f"{file.path} has the layers of {fitting[0]}{where}, and others beside them: "
        f"{shortened(extra.name)} ({text_of(extra.signature)[:200]})."
    )
    return WeightsError(
        message + _larger_network(part.state),
        remedy="If the network does not need them, write its weights without them.",
    )


def _larger_network(state: StateDict) -> str:
    if any(_LARGER_NETWORK.search(name) for name in state.names):
        return " It seems to be a network for detection or segmentation."
    return ""


def _no_network_error(
    content: FileContent,
    networks: Mapping[StateDict, Sequence[Part]],
    candidates: Mapping[str, Candidate],
    wanted: str | None,
) -> WeightsError:
    """Return the error for a file that has not the layers of the wanted network, or of none.

    Args:
        content: tensors of the file.
        networks: the networks in its state dicts.
        candidates: the published networks by name.
        wanted: name of the network that it should be of; None for any.
    """
    file = content.file
    state = max(networks, key=lambda each: (len(networks[each]), len(each.layers)))
    layers = networks[state][0].layers if networks[state] else state.layers
    fitting = [name for name, each in candidates.items() if each.has_layers_of(layers)]
    if state.problem is not None and not fitting:
        return state.problem.error(file.path)
    name = wanted or max(candidates, key=lambda each: candidates[each].likeness(layers))
    nearest = candidates[name]
    signatures = nearest.signatures_for(layers)
    missing, extra, common = difference(signatures, layers)
    if missing == 0 and extra is not None and common == len(signatures) - 1 == len(layers) - 1:
        expected = dict(signatures[0])["weight"]
        came = dict(extra.signature).get("weight", ())
        is_stem = len(came) == 4 and (came[0], came[2:]) == (expected[0], expected[2:])
        if is_stem and came[1] != expected[1]:
            return WeightsError(
                f"{file.path} is of {name} for images of {came[1]} channels "
                f"({extra.name}.weight is {'x'.join(map(str, came))}), not of {expected[1]}.",
                remedy="Give the weights for RGB images.",
            )
    if wanted:
        message = f"{file.path} is not of {wanted}"
        message += f", but of {' or '.join(fitting)}" if fitting else ""
    else:
        message = f"{file.path} is of no known network; the nearest is {name}"
    message += f": {common} of its {len(signatures)} layers are in the file's {len(layers)}."
    if missing is not None:
        slot = weighted_ops(nearest.graph)[missing].slot_name
        message += f" The first that is missing is {slot} ({text_of(signatures[missing])})."
    if extra is not None:
        text = f"{shortened(extra.name)} ({text_of(extra.signature)[:200]})"
        message += f" The file's first layer that {name} lacks is {text}."
    remedy = "Give weights of a network that nas spaces --references lists."
    return WeightsError(message + _larger_network(state), remedy=remedy)
