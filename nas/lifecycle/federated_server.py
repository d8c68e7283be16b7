"""The server of federated fine-tuning: it averages the weights of its clients, round by round.

The `server_app.py` of an app is this file; it imports `steps.py`, the text of `federated_steps`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from logging import INFO, WARNING
from pathlib import Path
from typing import Any

import network
import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord
from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server import LegacyContext, ServerConfig
from flwr.server.strategy import FedAvg as PlainFedAvg
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg, Strategy
from flwr.supercore import log

from nas.lifecycle.federated_steps import Rounds, norms_of, refusal, weights_of

MODEL_FILE = "network.safetensors"

MASKS_NEEDED = 0.6
"""Share of the clients that must be there to the end of a round of secure aggregation."""

app = ServerApp()


class Checked(Strategy):
    """Leaves answers out that cannot be averaged, and stores what the others led to.

    Attributes:
        rounds: what was stored.
        needed: number of clients that the noise is scaled for; None without noise.
    """

    rounds: Rounds
    current: list[np.ndarray]
    needed: int | None = None

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, *rest: Any
    ) -> Iterable[Message]:
        """Remember the weights that are sent."""
        self.current = arrays.to_numpy_ndarrays()
        return super().configure_train(server_round, arrays, *rest)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the answers that can be.

        The average of k answers moves by `clip / k` with one client. Flower adds the noise for all
        n clients to it, also if answers are missing, so that k of them would have the noise of
        `noise * k / n`: with noise, a round has the answers of all clients, or changes nothing.
        """
        accepted = [each for each in replies if each.has_error() or self.accepts(each)]
        answers = sum(not each.has_error() for each in accepted)
        if self.needed is not None and answers != self.needed:
            text = "%d of %d clients have answered, and the noise is for all: "
            log(WARNING, text + "this round changes nothing.", answers, self.needed)
            return None, None
        arrays, metrics = super().aggregate_train(server_round, accepted)
        if arrays is not None:
            self.rounds.store(arrays.to_numpy_ndarrays())
        return arrays, metrics

    def accepts(self, reply: Message) -> bool:
        """Return whether an answer can be averaged; the log says of whom and why not."""
        content, weight = reply.content, float("nan")
        try:
            [arrays] = content.array_records.values()
            weight = content["metrics"]["num-examples"]
            own, is_private = arrays.to_numpy_ndarrays(), self.needed is not None
            problem = refusal(own, self.current, weight, is_private=is_private)
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


class MaskedAverage(PlainFedAvg):
    """The average of weights that the server sees only the sum of.

    Flower has secure aggregation for the strategies of `flwr.server` alone.
    """

    rounds: Rounds

    def aggregate_fit(self, *results: Any) -> Any:
        """Store what the answers led to."""
        parameters, metrics = super().aggregate_fit(*results)
        if parameters is not None:
            self.rounds.store(parameters_to_ndarrays(parameters))
        return parameters, metrics


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Fine-tune the network, from the last round that was stored on."""
    run = context.run_config
    clients, noise, is_masked = run["clients"], run["noise"], run["secure-aggregation"]
    if noise and is_masked:
        raise ValueError("Flower has no noise with secure aggregation: switch one of them off.")
    model = network.load(MODEL_FILE)
    weights, norms = weights_of(model, has_norms=not (noise or is_masked)), norms_of(model)
    rounds = Rounds(Path(run["weights"]), weights, run)
    text = "%d of %d rounds are done. Waiting for %d clients."
    log(INFO, text, rounds.done, run["rounds"], clients)
    while len(list(grid.get_node_ids())) < clients:
        time.sleep(1)
    if is_masked:
        average_masked(grid, context, norms, rounds)
    else:
        average(grid, context, norms, rounds)
    if rounds.done < run["rounds"]:
        raise RuntimeError(
            f"{rounds.done} of {run['rounds']} rounds are done, since the log has rounds without "
            "enough answers: start the run again."
        )


def average(grid: Grid, context: Context, norms: bytes, rounds: Rounds) -> None:
    """Average weights, or changes of them with noise."""
    run = context.run_config
    clients, noise = run["clients"], run["noise"]
    strategy: Average | PrivateAverage
    if noise:
        # A round has exactly so many clients as the noise is scaled for.
        plain = FedAvg(1e-9, 0.0, min_train_nodes=clients, min_available_nodes=clients)
        strategy = PrivateAverage(plain, noise, run["clip"], clients)
        strategy.needed = clients
    else:
        strategy = Average(fraction_evaluate=0.0)
    strategy.rounds = rounds
    strategy.start(
        grid,
        ArrayRecord(list(rounds.weights.values())),
        run["rounds"] - rounds.done,
        run["round-seconds"],
        train_config=ConfigRecord({"norms": norms}),
    )


def average_masked(grid: Grid, context: Context, norms: bytes, rounds: Rounds) -> None:
    """Average weights that the server sees only the sum of, which all clients count equally in."""
    run, weights = context.run_config, list(rounds.weights.values())
    strategy = MaskedAverage(
        fraction_evaluate=0.0,
        initial_parameters=ndarrays_to_parameters(weights),
        on_fit_config_fn=lambda _: {"norms": norms},
    )
    strategy.rounds = rounds
    workflow = SecAggPlusWorkflow(
        1.0,
        MASKS_NEEDED,
        max_weight=1.0,
        clipping_range=2 * max(float(np.abs(each).max()) for each in weights),
        timeout=run["round-seconds"],
    )
    config = ServerConfig(run["rounds"] - rounds.done)
    DefaultWorkflow(workflow)(grid, LegacyContext(context, config, strategy))
