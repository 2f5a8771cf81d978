"""The examples and gradients that the paper shows as pictures, and the few numbers that go with them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ml import attacks
from ml.datasets import Dataset, to_float
from ml.measurements import LABELS, Bools, Evaluated, Floats

STEPS, EPSILON = attacks.ATTACKS["tgsm"][1]["steps"], attacks.ATTACKS["tgsm"][1]["epsilon"]
JSMA_SOURCES = 5  # test images of each of the first two labels that numbers are of; pictures are of the first
SHOWN_GRADIENTS = 5  # labels whose first test image is shown with its input gradients

Integers = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.float32]  # in [0, 1]


@dataclass(frozen=True)
class Examples:
    """What a targeted attack made of P (source image, target) pairs, the target never the source's label."""

    sources: Integers  # (P,), positions in the test images
    labels: Integers  # (P,), of the sources
    targets: Integers  # (P,)
    originals: Pixels  # (P, C, H, W)
    images: Pixels  # (P, C, H, W)
    predictions: Integers  # (P,), measured on the finished images

    @property
    def success(self) -> Bools:
        """(P,), whether the model answers the target."""
        return np.asarray(self.predictions == self.targets)

    @property
    def pixels_changed(self) -> Floats:
        """(P,), values that differ, of any channel."""
        return np.asarray((self.images != self.originals).sum((1, 2, 3)), dtype=np.float64)

    @property
    def l2(self) -> Floats:
        """(P,), the l2 distance from the original, in pixels of [0, 1]."""
        squares = (self.images.astype(np.float64) - self.originals) ** 2
        return np.asarray(np.sqrt(squares.sum((1, 2, 3))))


@dataclass(frozen=True)
class Path:
    """Iterated TGSM of one model on the pairs of a grid, step by step."""

    steps: tuple[Examples, ...]  # S + 1: the originals first
    target_probabilities: Floats  # (S + 1, P)

    @property
    def last(self) -> Examples:
        """The finished examples."""
        return self.steps[-1]


@dataclass(frozen=True)
class InputGradients:
    """A few test images and each model's gradients of the cross-entropy of LABELS with respect to their pixels."""

    images: Pixels  # (I, C, H, W)
    labels: Integers  # (I,)
    of_models: Mapping[str, Mapping[str, npt.NDArray[np.float32]]]  # model, then label: (I, C, H, W)


def first_of_each(dataset: Dataset, labels: Sequence[int], count: int) -> Integers:
    """The positions of the first `count` test images of each label, label by label; fewer where there are fewer."""
    return np.concatenate([np.flatnonzero(dataset.test_labels == label)[:count] for label in labels])


def jsma(network: Evaluated, dataset: Dataset, device: torch.device) -> Examples:
    """JSMA on the first images of the first two labels (0s and 1s), towards every other label."""
    sources, targets = _pairs(dataset, first_of_each(dataset, (0, 1), JSMA_SOURCES))
    images = to_float(dataset.test_images[sources])
    result = attacks.jsma(network, torch.from_numpy(images).to(device), torch.from_numpy(targets).to(device))
    return _examples(dataset, sources, targets, result)


def iterated_tgsm(network: Evaluated, dataset: Dataset, device: torch.device) -> Path:
    """Iterated TGSM on the first image of every label, towards every other label, as it is after each step."""
    sources, targets = _pairs(dataset, first_of_each(dataset, range(len(dataset.labels)), 1))
    x = torch.from_numpy(to_float(dataset.test_images[sources])).to(device)
    aim = torch.from_numpy(targets).to(device)
    units = network.units(x)  # of the unmodified images, at every step
    steps, probabilities = [], []
    for step in range(STEPS + 1):
        result = attacks.iterated_tgsm(network, x, aim, min(step, 1), EPSILON, units)
        x = result.images
        with torch.no_grad():
            given = network(x).double().softmax(1)
        steps.append(_examples(dataset, sources, targets, result))
        probabilities.append(given.gather(1, aim[:, None])[:, 0].cpu().numpy())
    return Path(tuple(steps), np.stack(probabilities))


def input_gradients(
    networks: Mapping[str, Evaluated], dataset: Dataset, device: torch.device
) -> InputGradients:
    """Each model's input gradients on the first test image of the first few labels."""
    count = len(dataset.labels)
    sources = first_of_each(dataset, range(min(SHOWN_GRADIENTS, count)), 1)
    images, labels = to_float(dataset.test_images[sources]), dataset.test_labels[sources]
    x = torch.from_numpy(images).to(device)
    wanted = {LABELS[0]: labels, LABELS[1]: (labels + 1) % count}
    of_models = {
        name: {
            label: attacks.loss_gradient(network, x, torch.from_numpy(y).to(device)).cpu().numpy()
            for label, y in wanted.items()
        }
        for name, network in networks.items()
    }
    return InputGradients(images, labels, of_models)


def _pairs(dataset: Dataset, sources: Integers) -> tuple[Integers, Integers]:
    """Every source with every label but its own: (P,) sources and (P,) targets."""
    every = np.arange(len(dataset.labels))
    pairs = [(s, t) for s in sources for t in every if t != dataset.test_labels[s]]
    both = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def _examples(
    dataset: Dataset, sources: Integers, targets: Integers, result: attacks.AttackResult
) -> Examples:
    return Examples(
        sources,
        dataset.test_labels[sources],
        targets,
        to_float(dataset.test_images[sources]),
        result.images.cpu().numpy(),
        result.predictions.cpu().numpy(),
    )
