"""`bom.json` of a bundle: a CycloneDX bill of materials of the model, its data and its software.

It follows version 1.6 of the specification (ECMA-424). `cyclonedx-python-lib` has no classes for
model cards, so that the document is made here, and the library's schema checks the whole.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from nas.errors import ExportError
from nas.run.model_card import ModelCard
from nas.statistics import Interval, wilson_interval

BOM_FILE = "bom.json"

_OWN_LICENSE = [{"license": {"id": "Apache-2.0"}}]
"""License of this package, a part of which is in `run.py` and `install.py`."""

Json = dict[str, Any]


def bill_of_materials(card: ModelCard, version: str, digests: Mapping[str, str]) -> str:
    """Return the text of `bom.json`.

    Args:
        card: the card of the model.
        version: version of the model.
        digests: SHA-256 digest of each file of the model, by name.

    Raises:
        ExportError: the schema of CycloneDX does not allow it.
    """
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    versions = dict(card.versions)
    components = [_data(card), {"type": "device", "bom-ref": "device", "name": card.device}]
    for name, digest in sorted(digests.items()):
        hashes = [{"alg": "SHA-256", "content": digest}]
        own = {"type": "file", "bom-ref": f"file:{name}", "name": name, "hashes": hashes}
        components.append(own)
    needs = {}
    for file in card.files:
        versions |= file.versions
        if file.file in digests:  # Not of a format that is a folder.
            packages = sorted(file.versions.items())
            needs[f"file:{file.file}"] = [_package(*each)["bom-ref"] for each in packages]
    components += [_package(*each) for each in sorted(versions.items())]
    needs["model"] = [each["bom-ref"] for each in components]
    serial = uuid.uuid5(uuid.NAMESPACE_OID, json.dumps([card.id, version, sorted(digests.items())]))
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": serial.urn,
        "version": 1,
        "metadata": {
            "timestamp": card.exported,
            "tools": {"components": [_package("nas", card.versions["nas"], is_tool=True)]},
            "component": _model(card, version),
        },
        "components": components,
        "dependencies": [{"ref": each, "dependsOn": needs[each]} for each in sorted(needs)],
    }
    text = json.dumps(document, indent=1, allow_nan=False) + "\n"
    if problem := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        reason = str(problem.data.message)[:300]
        raise ExportError(f"{BOM_FILE} would not be valid CycloneDX 1.6: {reason}.")
    return text


def _model(card: ModelCard, version: str) -> Json:
    """Return the component of the model, with its card."""
    stated = card.statements
    considerations: Json = {"technicalLimitations": [*card.limits]}
    if stated.intended_use:
        considerations["useCases"] = [stated.intended_use]
    if stated.misuse:
        risk = {"name": stated.misuse, "mitigationStrategy": stated.human_oversight}
        considerations["ethicalConsiderations"] = [risk]
    others = {
        "weights_digest": card.weights_digest,
        "macs": card.macs,
        "params": card.params,
        "accuracies": card.refit and card.refit.text(card.data.judging_name),
        "recipe": json.dumps(card.recipe, sort_keys=True),
        "human_oversight": stated.human_oversight,
        "monitoring": stated.monitoring,
        "contact": stated.contact,
    }
    return {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": card.id,
        "version": version,
        "description": f"Classifies images of {card.image_size} x {card.image_size} pixels: "
        + ", ".join(card.classes),
        "modelCard": {
            "modelParameters": {
                "approach": {"type": "supervised"},
                "task": "image classification",
                "architectureFamily": card.space,
                "modelArchitecture": json.dumps(card.architecture.choices, sort_keys=True),
                "datasets": [{"ref": "data"}],
                "inputs": [{"format": "grey image" if card.channels == 1 else "RGB image"}],
                "outputs": [{"format": f"logits of {len(card.classes)} classes"}],
            },
            "quantitativeAnalysis": {"performanceMetrics": [*_metrics(card)]},
            "considerations": considerations,
        },
        "properties": [
            {"name": f"nas:{name}", "value": str(value)} for name, value in others.items() if value
        ],
    }


def _metrics(card: ModelCard) -> Iterator[Json]:
    """Yield the accuracies with their 95% intervals, and the latencies."""
    data, accuracy = card.data, card.accuracy
    judged = data.interval(accuracy.holdout, *data.judging_parts)
    yield _metric(data.metric, data.judging_name, judged)
    yield _metric(data.metric, "test", data.interval(accuracy.test, "test"))
    by_class = zip(accuracy.by_class.items(), data.class_counts["test"], strict=True)
    for (name, value), count in by_class:
        if value is not None:
            yield _metric("accuracy", f"test, class {name}", wilson_interval(value, [count]))
    for row in card.robustness:
        interval = data.interval(row.accuracy, "holdout", images=card.robustness_images)
        yield _metric(data.metric, f"hold-out, change: {row.change}", interval)
    for row in card.attacks:
        interval = data.interval(row.accuracy, *data.judging_parts, images=card.attack_images)
        yield _metric(data.metric, f"{data.judging_name}, attack: {row.change}", interval)
    for file in card.files:
        if (interval := data.interval(file.accuracy, "test")) is not None:
            yield _metric(data.metric, f"test, {file.file}", interval)
        if (us := file.latency_us) is not None:
            where = f"{file.file}, one image on {card.device}"
            yield {"type": "latency in microseconds", "value": f"{us:.4g}", "slice": where}


def _metric(name: str, images: str, interval: Interval | None) -> Json:
    """Return a metric with its confidence interval."""
    assert interval is not None, "only an accuracy of None has no interval"
    value, low, high = (f"{each:.4f}" for each in (interval.value, interval.low, interval.high))
    bounds = {"lowerBound": low, "upperBound": high}
    return {"type": name, "value": value, "slice": images, "confidenceInterval": bounds}


def _data(card: ModelCard) -> Json:
    """Return the component of the images, with their license."""
    counts = ", ".join(f"{count:,} {part}" for part, count in card.data.counts.items())
    name = card.data.source
    result: Json = {
        "type": "data",
        "bom-ref": "data",
        "name": name,
        "description": f"Images: {counts}. {card.statements.data_origin}".strip(),
        "data": [{"type": "dataset", "name": name}],
        "properties": [{"name": "nas:digest", "value": card.data.digest}],
    }
    if card.data.license:
        result["licenses"] = [_license(card.data.license)]
    return result


def _license(text: str) -> Json:
    """Return a license: by its identifier of SPDX if the text is one."""
    from cyclonedx.spdx import fixup_id

    known = fixup_id(text)
    return {"license": {"name": text} if known is None else {"id": known}}


def _package(name: str, version: str, *, is_tool: bool = False) -> Json:
    """Return the component of a package, as the card names it."""
    from packageurl import PackageURL

    if name == "python":
        return {"type": "platform", "bom-ref": name, "name": name, "version": version}
    purl = PackageURL("pypi", None, "hardware-nas" if name == "nas" else name, version)
    return {
        "type": "application" if is_tool else "library",
        "bom-ref": f"{'tool:' * is_tool}{purl}",
        "name": purl.name,
        "version": version,
        "purl": str(purl),
        **({"licenses": _OWN_LICENSE} if name == "nas" else {}),
    }
