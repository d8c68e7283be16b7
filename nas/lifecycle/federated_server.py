"""The server of federated fine-tuning: it averages the weights of its clients, round by round.

The `server_app.py` of an app is this file; it imports `steps.py`, the text of `federated_steps`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from logging import INFO, WARNING
from pathlib import Path
from typing import Any

import network
import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord
from flwr.common import ndarrays_to_parameters
from flwr.server import LegacyContext, ServerConfig
from flwr.server.strategy import FedAvg as PlainFedAvg
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg, Strategy
from flwr.supercore import log

from nas.lifecycle.federated_steps import (
    norms_of,
    read_round,
    refusal,
    weights_of,
    write_round,
)

MODEL_FILE = "network.safetensors"

MASKS_NEEDED = 0.6
"""Share of the clients that must be there to the end of a round of secure aggregation."""

app = ServerApp()


class Checked(Strategy):
    """Leaves answers out that cannot be averaged, before a strategy sees them."""

    current: list[np.ndarray]
    needs_all = False

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, *rest: Any
    ) -> Iterable[Message]:
        """Remember the weights that are sent."""
        self.current = arrays.to_numpy_ndarrays()
        return super().configure_train(server_round, arrays, *rest)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the answers that can be; with noise a round needs those of all clients."""
        replies = list(replies)
        accepted = [each for each in replies if each.has_error() or self.accepts(each)]
        if len(accepted) < len(replies) and self.needs_all:
            log(WARNING, "The noise is for all clients: this round changes nothing.")
            return None, None
        return super().aggregate_train(server_round, accepted)

    def accepts(self, reply: Message) -> bool:
        """Return whether an answer can be averaged; the log says of whom and why not."""
        content, weight = reply.content, float("nan")
        try:
            [arrays] = content.array_records.values()
            weight = content["metrics"]["num-examples"]
            problem = refusal(arrays.to_numpy_ndarrays(), self.current, weight)
        except (KeyError, TypeError, ValueError) as error:
            problem = f"it cannot be read ({error})"
        if not problem:
            return True
        name = content.config_records.get("client", {}).get("name", "unknown")
        node = reply.metadata.src_node_id
        log(WARNING, "Client %s (node %s) is left out of this round: %s.", name, node, problem)
        return False


class Average(Checked, FedAvg):
    """The average of the weights, by the number of images of each client."""


class PrivateAverage(Checked, DifferentialPrivacyServerSideFixedClipping):
    """The average of clipped changes with noise, for differential privacy of the clients."""

    needs_all = True


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Fine-tune the network, from the last round that was stored on."""
    run = context.run_config
    path, clients, noise = Path(run["weights"]), run["clients"], run["noise"]
    if noise and run["secure-aggregation"]:
        raise ValueError("Flower has no noise with secure aggregation: switch one of them off.")
    model = network.load(MODEL_FILE)
    has_norms = not (noise or run["secure-aggregation"])
    weights, norms = weights_of(model, has_norms=has_norms), norms_of(model)
    record = {"model": run["model"]}
    if path.is_file():
        weights, record = read_round(path)
    if record["model"] != run["model"]:
        raise ValueError(f"{path} has weights of another model: move it away.")
    done = record.get("rounds", 0)
    log(INFO, "%d of %d rounds are done. Waiting for %d clients.", done, run["rounds"], clients)
    while len(list(grid.get_node_ids())) < clients:
        time.sleep(1)

    def store(number: int, arrays: list[np.ndarray]) -> None:
        if number:
            own = {"schema": 1, "model": run["model"], "rounds": done + number}
            named = dict(zip(weights, arrays, strict=True))
            write_round(path, named, {**own, "settings": dict(run)})

    rounds = run["rounds"] - done
    if run["secure-aggregation"]:
        average_masked(grid, context, list(weights.values()), norms, rounds, store)
        return
    strategy: Average | PrivateAverage
    if noise:
        # A round has exactly so many clients as the noise is scaled for.
        plain = FedAvg(1e-9, 0.0, min_train_nodes=clients, min_available_nodes=clients)
        strategy = PrivateAverage(plain, noise, run["clip"], clients)
    else:
        strategy = Average(fraction_evaluate=0.0)
    strategy.start(
        grid,
        ArrayRecord(list(weights.values())),
        rounds,
        run["round-seconds"],
        train_config=ConfigRecord({"norms": norms}),
        evaluate_fn=lambda number, arrays: store(number, arrays.to_numpy_ndarrays()),
    )


def average_masked(
    grid: Grid,
    context: Context,
    weights: list[np.ndarray],
    norms: bytes,
    rounds: int,
    store: Callable[[int, list[np.ndarray]], None],
) -> None:
    """Average weights that the server sees only the sum of, which all clients count equally in.

    Flower has secure aggregation for the strategies of `flwr.server` alone.
    """
    strategy = PlainFedAvg(
        fraction_evaluate=0.0,
        initial_parameters=ndarrays_to_parameters(weights),
        on_fit_config_fn=lambda _: {"norms": norms},
        evaluate_fn=lambda number, arrays, _: store(number, arrays),
    )
    workflow = SecAggPlusWorkflow(
        1.0,
        MASKS_NEEDED,
        max_weight=1.0,
        clipping_range=2 * max(float(np.abs(each).max()) for each in weights),
        timeout=context.run_config["round-seconds"],
    )
    legacy = LegacyContext(context, ServerConfig(rounds), strategy)
    DefaultWorkflow(workflow)(grid, legacy)
