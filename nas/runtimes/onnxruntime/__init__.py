"""ONNX Runtime on this machine's processor; see `runtime`. Importing this imports no ONNX Runtime.

Only modules of this package import `onnxruntime`, after this one has switched its telemetry off.
"""

import os

# ONNX Runtime reads this when it is loaded. Without it, it writes a device id and a queue of events
# below the user's cache folder.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
