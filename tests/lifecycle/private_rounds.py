"""Feed the strategy of an app with noise some answers: python private_rounds.py <SETTINGS

It runs in the folder of an app, with the Python of an environment that has Flower. It reads the
noise, the clip and the number of clients as JSON, and prints for each case whether a round was
stored; if so, the standard deviation of the noise, and how far one client moves the average.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import server_app
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from steps import Rounds

SIZE = 200_000
SENT = np.zeros(SIZE)


def answer(node: int, array: np.ndarray | None, weight: float = 1) -> SimpleNamespace:
    """Return the answer of a client, or its error: Flower makes messages in a task only."""
    metrics = MetricRecord({"num-examples": weight})
    arrays = ArrayRecord([SENT if array is None else array])
    return SimpleNamespace(
        content=RecordDict({"arrays": arrays, "metrics": metrics}),
        metadata=SimpleNamespace(src_node_id=node),
        error=SimpleNamespace(reason="broken"),
        has_error=lambda: array is None,
    )


def averaged(
    noise: float, clip: float, clients: int, answers: list[SimpleNamespace]
) -> np.ndarray | None:
    """Return the weights after a round; None if it changed nothing."""
    settings = {"model": "", "noise": noise, "secure-aggregation": False}
    path = Path("private.safetensors")
    path.unlink(missing_ok=True)
    strategy = server_app.PrivateAverage(FedAvg(), noise, clip, clients)
    strategy.rounds, strategy.needed = Rounds(path, {"a": SENT}, settings), clients
    strategy.current_arrays, strategy.current = ArrayRecord([SENT]), [SENT]
    arrays, _ = strategy.aggregate_train(1, answers)
    assert (arrays is not None) == path.is_file() == bool(strategy.rounds.done)
    return None if arrays is None else arrays.to_numpy_ndarrays()[0]


def main() -> None:
    """Print the cases."""
    noise, clip, clients = json.load(sys.stdin)
    change = np.full(SIZE, 100 * clip / SIZE**0.5)  # It is clipped to a hundredth.
    nodes = range(1, clients + 1)
    cases = {
        "all": [answer(node, change) for node in nodes],
        "one is missing": [answer(node, change) for node in nodes[1:]],
        "one has failed": [answer(node, None if node == 1 else change) for node in nodes],
        "one sends NaN": [answer(node, change * (np.nan if node == 1 else 1)) for node in nodes],
        "one trained nothing": [answer(node, SENT if node == 1 else change) for node in nodes],
        "one counts more": [answer(node, change, 1 + 99 * (node == 1)) for node in nodes],
        "one is too many": [answer(node, change) for node in range(clients + 1)],
        "none": [],
    }
    rows = []
    for name, answers in cases.items():
        result = averaged(noise, clip, clients, answers)
        rows.append({"case": name, "stored": result is not None})
        if result is not None:
            # A client with the opposite change moves the average by two of its shares.
            others = [answer(node, change * (-1 if node == 1 else 1)) for node in nodes]
            moved = averaged(1e-9, clip, clients, others)
            whole = averaged(1e-9, clip, clients, [answer(node, change) for node in nodes])
            rows[-1]["deviation"] = float(np.std(result - whole))
            rows[-1]["share"] = float(np.linalg.norm(whole - moved) / 2)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
