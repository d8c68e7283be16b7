"""Edits of a journal file, for tests of damaged ones."""

import json

from nas.search.storage import Storage
from nas.search.trial_log import TrialLog
from tests.search.trials import OBJECTIVES, SPACE

STUDY, NAMES, IDENTITY, ADDED, CLAIMED, RESULT, ENDED = range(7)
"""Positions of the operations in the journal that the fixture `journal` writes."""


def open_log(journal):
    return TrialLog(Storage(journal), [SPACE], OBJECTIVES, 0)


def to_line(operation):
    return json.dumps(operation, separators=(",", ":")).encode()


def edit_line(journal, position, edit):
    """Replace the line at a position by `edit(operation)`, an operation or the bytes of a line."""
    lines = journal.read_bytes().splitlines()
    edited = edit(json.loads(lines[position]))
    lines[position] = edited if isinstance(edited, bytes) else to_line(edited)
    journal.write_bytes(b"\n".join(lines) + b"\n")


def remove(key):
    """Return an edit that removes a key."""
    return lambda operation: {k: v for k, v in operation.items() if k != key}


def put(value, *keys):
    """Return an edit that sets the value at the end of a path of keys."""

    def edit(operation):
        inner = operation
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        return operation

    return edit
