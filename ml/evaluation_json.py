"""Everything measured as JSON: the numbers that the page prints, and those that it only draws."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from ml import intervals
from ml.evidence import PUBLISHED, PUBLISHED_IMAGES, Measured
from ml.intervals import Estimate
from ml.measurements import LABELS, Bools, Gradients, Overlap, Transfer, quantiles
from ml.pictures import Examples
from ml.verdicts import Claim

# The three models of the paper's Venn diagrams, with the form of the penalty that its curves have.
VENN = ("undefended", "adversarially_trained", "double_backprop")


def measurements(measured: Measured, overlaps: Sequence[Overlap]) -> dict[str, Any]:
    """The keys of report.json that say what was measured."""
    transfer = measured.transfer
    first = {attack: correct[..., :PUBLISHED_IMAGES] for attack, correct in transfer.correct.items()}
    beginning = Transfer(transfer.models, transfer.epsilons, first)
    accuracies, ends, n = accuracy_tables(transfer)
    first_accuracies, first_ends, first_n = accuracy_tables(beginning)
    clean = {model: intervals.share(right) for model, right in measured.clean.items()}
    return {
        "clean_accuracy": {model: estimate.value for model, estimate in clean.items()},
        "clean_accuracy_intervals": {model: [e.low, e.high] for model, e in clean.items()},
        "transfer": accuracies,
        "transfer_intervals": ends,
        "n": n,
        "transfer_first": {"n": first_n, "transfer": first_accuracies, "transfer_intervals": first_ends},
        "gradients": {model: gradient_summary(measured.gradients, model) for model in measured.models},
        "overlap": {found.made_for: overlap(found) for found in overlaps},
        "jsma": {model: examples(made) for model, made in measured.jsma.items()},
        "iterated_tgsm": {
            model: examples(path.last)
            | {
                "reached_by_step": [share(made.success) for made in path.steps],
                "mean_target_probability_by_step": path.target_probabilities.mean(1).tolist(),
            }
            for model, path in measured.tgsm.items()
        },
        "cost": cost(measured),
        "published": published(measured),
    }


def accuracy_tables(transfer: Transfer) -> tuple[dict[str, Any], dict[str, Any], int]:
    """attack -> made for -> evaluated -> epsilon: the accuracy and, in the second, its interval; and n."""
    accuracies: dict[str, Any] = {}
    ends: dict[str, Any] = {}
    for attack in transfer.correct:
        for made_for in transfer.models:
            for evaluated in transfer.models:
                found = {
                    str(epsilon): intervals.share(transfer.answers(attack, made_for, evaluated, epsilon))
                    for epsilon in transfer.epsilons
                }
                of_maker = accuracies.setdefault(attack, {}).setdefault(made_for, {})
                of_maker[evaluated] = {epsilon: e.value for epsilon, e in found.items()}
                of_maker = ends.setdefault(attack, {}).setdefault(made_for, {})
                of_maker[evaluated] = {epsilon: [e.low, e.high] for epsilon, e in found.items()}
    n = len(transfer.answers(attack, transfer.models[0], transfer.models[0], transfer.epsilons[0]))
    return accuracies, ends, n


def gradient_summary(gradients: Gradients, model: str) -> dict[str, Any]:
    """Quantiles of a model's distributions, for the true label, the next one, and (probabilities) all labels."""
    found: dict[str, Any] = {
        label: {
            "norm": quantiles(gradients.norms[model][label]),
            "vanished_in_float32": share(gradients.vanished[model][label]),
            "smoothness": quantiles(gradients.smoothness[model][label]),
            "log_probability": quantiles(gradients.log_probability(model, label)),
        }
        for label in LABELS
    }
    found["all"] = {"log_probability": quantiles(gradients.log_probabilities[model].ravel())}
    return found


def overlap(found: Overlap) -> dict[str, Any]:
    """Counts of examples that any two models both get wrong (their own with themselves), and the shares."""
    models = found.models
    return {
        "n": found.wrong.shape[1],
        "both_wrong": {a: {b: found.both(a, b) for b in models} for a in models},
        "both_of_either": {a: {b: found.shared(a, b) for b in models} for a in models},
        "venn": found.regions([model for model in VENN if model in models]),
    }


def examples(made: Examples) -> dict[str, Any]:
    """How often an attack reached its target, and how far its examples lie from their originals."""
    return {
        "sources": sorted({int(index) for index in made.sources}),
        "reached": share(made.success),
        "pixels_changed": quantiles(made.pixels_changed),
        "l2": quantiles(made.l2),
    }


def cost(measured: Measured) -> dict[str, Any] | None:
    """Ratios to undefended training, and the median seconds of a step."""
    if measured.cost is None:
        return None
    return {
        "batch": measured.cost.batch,
        "compiled": measured.cost.compiled,
        "ratio": {model: asdict(measured.cost.ratio(model)) for model in measured.models},
        "seconds_per_step": {name: float(np.median(s)) for name, s in measured.cost.seconds.items()},
    }


def published(measured: Measured) -> list[dict[str, Any]]:
    """Our accuracies beside the published ones, which are MNIST's, on the images that those were measured on."""
    if measured.dataset != "mnist":
        return []
    rows = []
    for (maker, evaluated), points in PUBLISHED.items():
        for epsilon, value in points.items():
            right = measured.transfer.answers("fgsm", maker, evaluated, epsilon)
            ours = intervals.share(right[:PUBLISHED_IMAGES])
            rows.append(
                {
                    "attack": "fgsm",
                    "made_for": maker,
                    "evaluated": evaluated,
                    "epsilon": epsilon,
                    "published": value,
                    "ours": ours.value,
                    "low": ours.low,
                    "high": ours.high,
                    "n": ours.n,
                    "difference": ours.value - value,
                    "ours_on_all": float(right.mean()),
                }
            )
    return rows


def claim(found: Claim) -> dict[str, Any]:
    """A claim with its numbers; figures by file name."""
    return {
        "id": found.id,
        "title": found.title,
        "claim": found.claim,
        "criterion": found.criterion,
        "verdict": found.verdict,
        "reason": found.reason,
        "numbers": [
            {
                "what": number.what,
                **asdict(number.estimate),
                "unit": number.unit,
                "wanted": number.wanted,
                "verdict": number.verdict,
            }
            for number in found.numbers
        ],
        "figures": [f"{name}.png" for name in found.figures],
    }


def share(outcomes: Bools) -> dict[str, Any]:
    """Count, n, share and interval of true outcomes."""
    estimate: Estimate = intervals.share(outcomes)
    return {"count": int(outcomes.sum()), **asdict(estimate)}


def rounded(value: Any) -> Any:
    """The same JSON with all floats at six significant digits; what is not finite becomes null."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list | tuple) else value
