"""What `TfliteBoard` and the server on its board say to each other. Importing this imports no TVM.

The server registers a function with TVM RPC. Its arguments are a request as JSON and the contents
of a TensorFlow Lite file, and it returns an answer as JSON:

    {"describe": true}                                   `protocol` and `BoardDescription`
    {"speed": threads}                                   a reading of the core's speed: `seconds`
    {"file", "threads", "batch", "calls", "samples"}     times a file: `seconds`, `operators`, ...

`file` is the SHA-256 digest of the contents, which may be empty if the board has the file. If it
does not, the answer has only `unknown`, and the request follows with the contents. Whatever fails
is an answer, too: its `error` says why.
"""

from __future__ import annotations

FUNCTION = "nas.time_tflite"
"""Name of the function."""

PROTOCOL = 2
"""Number of these requests and answers; a description has it, too."""

LIMIT_SECONDS = 60.0
"""Longest time that a board works on a request; after that it answers with an error."""
