"""What the good networks of a run share: which choices matter, and which options do not pay."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import hypergeom

from nas.errors import NasError
from nas.files.documents import Count, Document, Name, NetworkDigest
from nas.run.candidates import score
from nas.run.front import front, near_front
from nas.run.objectives import RunObjective
from nas.run.run import Run
from nas.search.importance import Effect, Importance, choice_importance
from nas.space import SearchSpace
from nas.space.architecture import Value

MAX_FITTED = 500
"""Scored networks that the models of importance are fitted to: more take longer, and say no more.
"""

MIN_FITTED = 40
"""Scored networks below which nothing is said about importance: spaces have up to 50 choices."""

ABSENT = -1
"""Stands for the option of a choice that a network does not have."""

MAX_CHANCE = 0.05
"""Largest probability that networks near the front lack an option by chance, to call it dead."""

MIN_SHARED_BY = 3
"""Smallest front whose members can be said to share an option."""


class ChoiceColumn(Document):
    """One choice of a space, with what each network chose.

    Attributes:
        name: name of the choice, such as `stage2.0.kernel`.
        options: its options.
        chosen: position of each network's option, in the order of `SpaceChoices.networks`; -1 for a
            network that does not have the choice.
    """

    name: str
    options: list[int | float | str]
    chosen: list[int]


class ChoiceGroup(Document):
    """Choices that belong together: one argument of all blocks of a stage, or a single choice.

    Attributes:
        name: name of the group: `stage2.kernel` is the kernel of all blocks of stage2.
        choices: names of the choices.
        accuracy, latency_us: importance of the group for the score, a fraction, and for the
            predicted latency in microseconds; None if no model can tell.
    """

    name: str
    choices: list[str]
    accuracy: Effect | None
    latency_us: Effect | None

    @property
    def share(self) -> float:
        """The larger of both importances; 0 if no model can tell."""
        return max((each.share for each in (self.accuracy, self.latency_us) if each), default=0.0)


class DeadOption(Document):
    """An option that no network on the front, or near it, has.

    Attributes:
        option: the option in words.
        scored: number of scored networks that have it.
    """

    option: str
    scored: Count


class GridCell(NamedTuple):
    """What a member of a front chose for a group of choices.

    Attributes:
        options: its options, those of blocks in their order; empty if it lacks the choices.
        level: mean position of these options among all, from 0 for the first to 1 for the last.
    """

    options: str
    level: float


class SpaceChoices(Document):
    """The choices of the scored networks of one space.

    Attributes:
        space: name of the space.
        networks: IDs of the scored networks.
        front: IDs of those on the front of the space by itself, the fastest first.
        near: number of networks that are on that front or near it, see
            `nas.run.front.near_front`.
        choices: every choice that has alternatives, in the order of the space's table.
        groups: the same in groups, in the same order.
        fitted: number of networks that the models of importance were fitted to.
        accuracy_explained, latency_explained: share of the variance that the models explain for
            networks that they were not fitted to; None if there were too few networks for a model.
        shared: what all members of the front have in common, in words.
        dead: options that do not pay.
    """

    space: Name
    networks: list[NetworkDigest]
    front: list[NetworkDigest]
    near: Count
    choices: list[ChoiceColumn]
    groups: list[ChoiceGroup]
    fitted: Count
    accuracy_explained: float | None
    latency_explained: float | None
    shared: list[str]
    dead: list[DeadOption]

    @property
    def important(self) -> list[ChoiceGroup]:
        """The groups with at least a hundredth of either importance, the most important first."""
        ordered = sorted(self.groups, key=lambda group: group.share, reverse=True)
        return [group for group in ordered if group.share >= 0.01]

    @property
    def grid(self) -> list[tuple[str, list[GridCell]]]:
        """Each group with a cell for every member of the front, in the order of `front`."""
        columns = {column.name: column for column in self.choices}
        members = [self.networks.index(member) for member in self.front]
        return [
            (group.name, [_cell([columns[name] for name in group.choices], at) for at in members])
            for group in self.groups
        ]


def _cell(columns: Sequence[ChoiceColumn], network: int) -> GridCell:
    """Return the cell of a group of choices for one network."""
    chosen = [
        (column.options, at) for column in columns if (at := column.chosen[network]) != ABSENT
    ]
    levels = [at / max(1, len(options) - 1) for options, at in chosen]
    return GridCell(
        " ".join(str(options[at]) for options, at in chosen),
        sum(levels) / len(levels) if levels else 0.0,
    )


class ChoicesSection(Document):
    """The choices of a run by space."""

    spaces: list[SpaceChoices]


def choices_section(run: Run) -> ChoicesSection | None:
    """Return what the good networks of each space share.

    None if no network has been scored, or the run's copy of a space cannot be loaded.
    """
    rows = run.trials_so_far
    scored = rows[rows["state"] == "complete"]
    try:
        spaces = [
            space_choices(space, scored[scored["space"] == name], run.objectives)
            for name, space in run.searched.items()
            if (scored["space"] == name).any()
        ]
    except NasError:
        return None
    return ChoicesSection(spaces=spaces) if spaces else None


def space_choices(
    space: SearchSpace, rows: pd.DataFrame, objectives: Sequence[RunObjective]
) -> SpaceChoices:
    """Return the choices of the scored networks of a space.

    Args:
        space: the space.
        rows: its complete candidates.
        objectives: objectives and limits of the run.
    """
    records = [json.loads(text) for text in rows["architecture"]]
    chosen = pd.DataFrame([record["choices"] for record in records], index=rows.index)
    chosen = chosen.reindex(columns=list(space.parameters))
    members = front(rows, objectives)
    is_good = near_front(rows, objectives) | rows.index.isin(members.index)
    groups = groups_of(space)
    by_accuracy, by_latency = _importance(space, groups, rows, records)
    return SpaceChoices(
        space=space.name,
        networks=rows["id"].tolist(),
        front=members["id"].tolist(),
        near=int(is_good.sum()),
        choices=[
            ChoiceColumn(
                name=name,
                options=list(options),
                chosen=pd.Index(options).get_indexer(pd.Index(chosen[name])).tolist(),
            )
            for name, options in space.parameters.items()
        ],
        groups=[
            ChoiceGroup(
                name=name,
                choices=names,
                accuracy=by_accuracy and by_accuracy.effects.get(name),
                latency_us=by_latency and by_latency.effects.get(name),
            )
            for name, names in groups.items()
        ],
        fitted=min(len(rows), MAX_FITTED) if by_accuracy else 0,
        accuracy_explained=by_accuracy.explained if by_accuracy else None,
        latency_explained=by_latency.explained if by_latency else None,
        shared=shared_options(space, chosen.loc[members.index]),
        dead=dead_options(space, chosen, is_good),
    )


def groups_of(space: SearchSpace) -> dict[str, list[str]]:
    """Return the names of the choices of a space by the name of their group.

    The choices that every block of a stage makes for one argument are a group, `stage2.kernel` of
    `stage2.0.kernel` and `stage2.1.kernel`. Every other choice is a group of its own.
    """
    groups: dict[str, list[str]] = {}
    for name in space.parameters:
        parts = name.split(".")
        groups.setdefault(f"{parts[0]}.{parts[-1]}" if _is_of_block(name) else name, []).append(
            name
        )
    return groups


def _importance(
    space: SearchSpace,
    groups: Mapping[str, Sequence[str]],
    rows: pd.DataFrame,
    records: Sequence[Mapping[str, object]],
) -> tuple[Importance | None, Importance | None]:
    """Return the importance of groups for the score and for the predicted latency."""
    if len(rows) < MIN_FITTED:
        return None, None
    fitted = np.random.default_rng(0).permutation(len(rows))[:MAX_FITTED]
    architectures = [space.from_json(records[index]) for index in fitted]
    latency = rows["predicted_us"].fillna(rows["measured_us"])
    objectives = [each.to_numpy(float)[fitted] for each in (score(rows), latency)]
    by_accuracy, by_latency = choice_importance(space, groups, architectures, objectives)
    return by_accuracy, by_latency


def dead_options(space: SearchSpace, chosen: pd.DataFrame, is_good: pd.Series) -> list[DeadOption]:
    """Return the options that no good network has, those that were scored most often first.

    An option that no block of a stage has, or no block at all, is one entry. An option that was
    scored so seldom that chance may explain its absence is none, nor are the options of a block
    that no good network has.

    Args:
        space: the space.
        chosen: option of each choice, a column, for every scored network, a row.
        is_good: which networks are on the front or near it.
    """
    dead: list[DeadOption] = []
    covered: set[tuple[str, Value]] = set()
    for label, names in _broad_to_narrow(space):
        # Networks without these blocks say nothing about the options of the blocks.
        with_choice = chosen[names].notna().any(axis=1)
        good = int((with_choice & is_good).sum())
        for option in dict.fromkeys(each for name in names for each in space.parameters[name]):
            own = {(name, option) for name in names if option in space.parameters[name]}
            has_it = (chosen[names] == option).any(axis=1)
            scored = int(has_it.sum())
            if own <= covered or not scored or (has_it & is_good).any():
                continue
            if hypergeom.pmf(0, int(with_choice.sum()), good, scored) <= MAX_CHANCE:
                dead.append(DeadOption(option=f"{label} {option}", scored=scored))
                covered |= own
    return sorted(dead, key=lambda each: -each.scored)


def shared_options(space: SearchSpace, members: pd.DataFrame) -> list[str]:
    """Return the options that all members of a front have wherever they have the choice."""
    if len(members) < MIN_SHARED_BY:
        return []
    shared: list[str] = []
    covered: set[str] = set()
    for label, names in _broad_to_narrow(space):
        own = members[names]
        options = {each for name in names for each in own[name].dropna()}
        if len(options) == 1 and own.notna().any(axis=1).all() and not covered.issuperset(names):
            (option,) = (each for each in space.parameters[names[0]] if each in options)
            shared.append(f"{label} {option}")
            covered |= set(names)
    return shared


def _broad_to_narrow(space: SearchSpace) -> Iterator[tuple[str, list[str]]]:
    """Iterate over choices with a label: those of all blocks, of a stage's blocks, then single."""
    groups = groups_of(space)
    of_all_blocks: dict[str, list[str]] = {}
    for name in space.parameters:
        if _is_of_block(name):
            of_all_blocks.setdefault(name.split(".")[-1], []).append(name)
    yield from of_all_blocks.items()
    yield from groups.items()
    for label, names in groups.items():
        if names != [label]:
            yield from ((name, [name]) for name in names)


def _is_of_block(name: str) -> bool:
    """Return whether a choice is that of one block, such as `stage2.0.kernel`."""
    return name.count(".") == 2
