"""Chooses the strength of a gradient penalty: a sweep on a validation split, against adversarial examples.

As in the code of Ross and Doshi-Velez (2018), penalties are log-spaced and judged by the accuracy on FGSM examples
that were made for an undefended network, as long as unmodified images are still read well.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ml import attacks, train
from ml.checkpoints import Trained
from ml.datasets import Dataset, to_float

# From and to, as powers of ten; 13 values in the paper, four to a power.
RANGES = {"gradient_regularized": (0.0, 3.0), "double_backprop": (2.0, 5.0)}
POINTS = 13

EPSILONS = (0.1, 0.2, 0.3)  # in normalized units
VALIDATION = 10  # every tenth training image is held out
MOST_LOST = 0.02  # of the best clean accuracy, for what is chosen


@dataclass(frozen=True)
class Row:
    """What one penalty gave on the validation images; all are accuracies in [0, 1].

    `transferred` is the accuracy on the undefended network's FGSM examples by epsilon, `own` that on FGSM examples
    made for the network itself.
    """

    penalty: float
    clean: float
    transferred: dict[str, float]
    own: dict[str, float]

    @property
    def score(self) -> float:
        """What is maximized: the mean of `transferred`."""
        return float(np.mean(list(self.transferred.values())))


@dataclass(frozen=True)
class Sweep:
    """A sweep's table. `chosen` is the penalty with the best score among those whose clean accuracy is within
    MOST_LOST of the best; of equal ones the smallest."""

    model: str
    validation_images: int
    undefended: Row
    rows: tuple[Row, ...]

    @property
    def chosen(self) -> float:
        """The penalty to train with."""
        best = max(row.clean for row in self.rows)
        able = [row for row in self.rows if row.clean >= best - MOST_LOST]
        return max(able, key=lambda row: (row.score, -row.penalty)).penalty

    def as_json(self) -> dict[str, Any]:
        """The table as a report keeps it."""
        return {**asdict(self), "chosen": self.chosen}


def penalties(model: str, points: int = POINTS) -> tuple[float, ...]:
    """The log-spaced penalties of a model of RANGES, rounded to four significant digits."""
    return tuple(float(f"{value:.4g}") for value in np.logspace(*RANGES[model], points))


def split(dataset: Dataset) -> Dataset:
    """The training images alone: every tenth is a test image, the others train."""
    held = np.arange(len(dataset.train_images)) % VALIDATION == 0
    return replace(
        dataset,
        train_images=dataset.train_images[~held],
        train_labels=dataset.train_labels[~held],
        test_images=dataset.train_images[held],
        test_labels=dataset.train_labels[held],
    )


def sweep(
    model: str,
    dataset: Dataset,
    schedule: train.Schedule,
    seed: int,
    device: torch.device,
    checkpoints: Path,
    values: Sequence[float] | None = None,
) -> Sweep:
    """Trains `model` once for each penalty on the split of the training images, and judges each.

    Test images are not looked at. What is trained is kept among the checkpoints: an interrupted sweep goes on.
    """
    data = split(dataset)
    pixels = torch.from_numpy(to_float(data.test_images)).to(device)
    labels = torch.from_numpy(data.test_labels).to(device)

    def trained(name: str, settings: dict[str, float] | None = None) -> Trained:
        return train.obtain(name, data, schedule, seed, device, checkpoints, settings)

    undefended = trained("undefended")
    rows = [
        _row(value, trained(model, {"penalty": value}), undefended, pixels, labels)
        for value in (penalties(model) if values is None else values)
    ]
    baseline = _row(0.0, undefended, undefended, pixels, labels)
    return Sweep(model, len(labels), baseline, tuple(rows))


def _row(
    penalty: float, judged: Trained, undefended: Trained, pixels: torch.Tensor, labels: torch.Tensor
) -> Row:
    def accuracies(maker: Trained) -> dict[str, float]:
        units = maker.network.units(pixels)
        direction = attacks.loss_gradient(maker.network, pixels, labels)
        found = {}
        for epsilon in EPSILONS:
            examples = attacks.stepped(pixels, direction, epsilon, units)
            with torch.no_grad():
                parts = [judged.network(part).argmax(1) for part in torch.split(examples, 1000)]
            right = torch.cat(parts) == labels
            found[f"{epsilon:.1f}"] = round(float(right.double().mean()), 6)
        return found

    return Row(penalty, round(judged.clean_accuracy, 6), accuracies(undefended), accuracies(judged))
