"""The client of federated fine-tuning: it trains on its own images, and sends weights alone.

The `client_app.py` of an app is this file; it imports `steps.py`, the text of `federated_steps`.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable
from flwr.common import Code, FitRes, Status, ndarrays_to_parameters
from flwr.compat.common.recorddict_compat import fitres_to_recorddict
from network import Network

from nas.lifecycle.federated_steps import (
    JUDGING_SHARE,
    count_right,
    fine_tune,
    load_weights,
    read_folder,
    weights_of,
)


def masked(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Hide the weights from the server if the run asks for secure aggregation."""
    if context.run_config["secure-aggregation"]:
        return secaggplus_mod(message, context, call_next)
    return call_next(message, context)


app = ClientApp(mods=[masked])


@app.train()
def train(message: Message, context: Context) -> Message:
    """Fine-tune the weights that the server sent, after they were judged on other images."""
    run = context.run_config
    is_private = bool(run["noise"] or run["secure-aggregation"])
    network = received(message, has_norms=not is_private)
    preprocessing, pixels, labels = own_images(context)
    judging = np.arange(len(labels)) % JUDGING_SHARE == 0
    right = count_right(network, pixels[judging], labels[judging], preprocessing)
    fine_tune(
        network,
        pixels[~judging],
        labels[~judging],
        preprocessing,
        epochs=run["epochs"],
        learning_rate=run["learning-rate"],
        mu=run["proximal-mu"],
        trains_norms=not is_private,
        seed=context.node_id,
    )
    arrays = weights_of(network, has_norms=not is_private)
    if run["secure-aggregation"]:
        if not all(np.isfinite(each).all() for each in arrays.values()):
            raise ValueError("The training diverged; lower learning-rate.")
        parameters = ndarrays_to_parameters(list(arrays.values()))
        answer = FitRes(Status(Code.OK, ""), parameters, 1, {})
        return Message(fitres_to_recorddict(answer, keep_input=False), reply_to=message)
    metrics = {"num-examples": int((~judging).sum()), "accuracy": right / int(judging.sum())}
    if is_private:  # Nothing without noise, and all clients count the same.
        metrics = {"num-examples": 1}
    content = {
        "arrays": ArrayRecord(list(arrays.values())),
        "metrics": MetricRecord(metrics),
        "client": ConfigRecord({"name": str(context.node_config["name"])}),
    }
    return Message(RecordDict(content), reply_to=message)


def received(message: Message, *, has_norms: bool) -> Network:
    """Return the network with the weights and the norms that the server sent."""
    network, content = Network(), message.content
    arrays = next(iter(content.array_records.values())).to_numpy_ndarrays()
    norms = next(each["norms"] for each in content.config_records.values() if "norms" in each)
    load_weights(network, arrays, norms, has_norms=has_norms)
    return network


def own_images(context: Context) -> tuple[dict, np.ndarray, np.ndarray]:
    """Return how images are read, and the decoded images and labels of this client."""
    path = Path(__file__).with_name("preprocessing.json")
    preprocessing = json.loads(path.read_bytes())
    return preprocessing, *read_folder(Path(context.node_config["images"]), preprocessing)
