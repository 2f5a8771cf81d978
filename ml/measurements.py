"""What the paper's curves and distributions are made of: every image's answer and gradient, kept one by one.

Accuracies with intervals, any subset of the images and comparisons paired over images all come from the same
arrays. Epsilon is in the data set's normalized units (`Network.units` tells how many pixel units one is).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ml import attacks
from ml.datasets import Dataset, to_float
from ml.intervals import Values

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

SINGLE_STEPS = ("fgsm", "tgsm")
EPSILONS = tuple(round(0.1 * step, 1) for step in range(8))
OVERLAP_EPSILON = 0.4  # at which the paper draws the overlap of misclassified examples
FLOOR = 1e-20  # of gradient norms

LABELS = ("true", "next")  # the labels that gradients and probabilities are taken of: y and y + 1 mod K

_CHUNK = 500  # images at once


class Evaluated(Protocol):
    """What is evaluated: `ml.models.Network`, or anything that can be called and asked for units as it can."""

    def __call__(self, x: Tensor, /) -> Tensor:
        """Logits (N, K) of pixels (N, C, H, W) in [0, 1]."""

    def units(self, x: Tensor, /) -> Tensor:
        """(N, 1, 1, 1), the pixel units of one normalized unit."""


@dataclass(frozen=True)
class Batch:
    """The test images that everything is measured on, on the networks' device."""

    images: Tensor  # (N, C, H, W), float32 in [0, 1]
    labels: Tensor  # (N,)
    classes: int

    @property
    def following(self) -> Tensor:
        """(N,), the targets of TGSM: y + 1 mod K."""
        return (self.labels + 1) % self.classes

    def of(self, label: str) -> Tensor:
        """(N,), the labels that one of LABELS stands for."""
        return self.labels if label == "true" else self.following


@dataclass(frozen=True)
class Transfer:
    """Which examples made for one model each model answers with the true label.

    `correct` maps an attack to (M made for, E epsilons, M evaluated, N images).
    """

    models: tuple[str, ...]
    epsilons: tuple[float, ...]
    correct: Mapping[str, Bools]

    def answers(self, attack: str, made_for: str, evaluated: str, epsilon: float) -> Bools:
        """(N,), whether the model answers each example with its true label."""
        made, judge = self.models.index(made_for), self.models.index(evaluated)
        right: Bools = self.correct[attack][made, self.epsilons.index(epsilon), judge]
        return right

    def share(
        self, attack: str, made_for: Sequence[str], evaluated: str, lowest: float, highest: float = 1.0
    ) -> Floats:
        """(N,), each image's share of right answers over `made_for` and the epsilons between the two."""
        rows = [self.models.index(name) for name in made_for]
        columns = [i for i, epsilon in enumerate(self.epsilons) if lowest <= epsilon <= highest]
        chosen = self.correct[attack][:, :, self.models.index(evaluated)][np.ix_(rows, columns)]
        return np.asarray(chosen.mean((0, 1)))


@dataclass(frozen=True)
class Gradients:
    """Of each model and image, the gradient of the cross-entropy of the true label and of the one after it.

    All maps go from a model's name, then one of LABELS. Norms are l2, of the gradient by normalized units, computed
    in float32 and not below FLOOR; `vanished` is where every single component is exactly zero, so that the gradient
    sign methods leave the image as it was. `smoothness` is `autocorrelation`, NaN where the gradient has vanished.
    """

    norms: Mapping[str, Mapping[str, Floats]]  # (N,)
    vanished: Mapping[str, Mapping[str, Bools]]  # (N,)
    smoothness: Mapping[str, Mapping[str, Floats]]  # (N,)
    log_probabilities: Mapping[str, Floats]  # (N, K), natural logarithms
    labels: Mapping[str, npt.NDArray[np.int64]]  # (N,), from one of LABELS

    def log_probability(self, model: str, label: str) -> Floats:
        """(N,), that of one of LABELS."""
        logs = self.log_probabilities[model]
        return np.asarray(logs[np.arange(len(logs)), self.labels[label]])


def batch(dataset: Dataset, images: int, device: torch.device) -> Batch:
    """The first so many test images."""
    return Batch(
        torch.from_numpy(to_float(dataset.test_images[:images])).to(device),
        torch.from_numpy(dataset.test_labels[:images]).to(device),
        len(dataset.labels),
    )


def transfer(
    networks: Mapping[str, Evaluated],
    of: Batch,
    epsilons: Sequence[float] = EPSILONS,
    on_progress: Callable[[int], object] = lambda judged: None,
) -> Transfer:
    """FGSM and TGSM examples made for every model, at every epsilon, judged by every model.

    A single step along the sign of the gradient, which is computed once a model and attack. `on_progress` is called
    with the number of networks' answers (one an image) that have been added.
    """
    names, count = tuple(networks), len(of.labels)
    correct = {a: np.zeros((len(names), len(epsilons), len(names), count), dtype=bool) for a in SINGLE_STEPS}
    for attack, attacked in zip(SINGLE_STEPS, LABELS, strict=True):
        for made, maker in enumerate(networks.values()):
            for part in _parts(count):
                images, labels = of.images[part], of.labels[part]
                gradient = attacks.loss_gradient(maker, images, of.of(attacked)[part])
                direction = gradient if attack == "fgsm" else -gradient
                for level, epsilon in enumerate(epsilons):
                    examples = attacks.stepped(images, direction, epsilon, maker.units(images))
                    for judge, network in enumerate(networks.values()):
                        right = _answers(network, examples) == labels
                        correct[attack][made, level, judge, part] = right.cpu().numpy()
                    on_progress(len(images) * len(names))
    return Transfer(names, tuple(epsilons), correct)


def gradients(networks: Mapping[str, Evaluated], of: Batch) -> Gradients:
    """Norms, smoothness and vanishing of input gradients, and log-probabilities, of every model."""
    norms: dict[str, dict[str, Floats]] = {}
    vanished: dict[str, dict[str, Bools]] = {}
    smoothness: dict[str, dict[str, Floats]] = {}
    logs = {}
    for name, network in networks.items():
        units = network.units(of.images)
        norms[name], vanished[name], smoothness[name] = {}, {}, {}
        for label in LABELS:
            by_pixels = attacks.loss_gradient(network, of.images, of.of(label))  # (N, C, H, W)
            vanished[name][label] = (by_pixels == 0).flatten(1).all(1).cpu().numpy()
            gradient = (by_pixels * units).double()  # the squares of a float32 underflow long before it does
            norms[name][label] = gradient.flatten(1).norm(dim=1).clamp(min=FLOOR).cpu().numpy()
            smoothness[name][label] = autocorrelation(gradient.cpu().numpy())
        with torch.no_grad():
            logits = torch.cat([network(of.images[part]).cpu() for part in _parts(len(of.labels))])
        logs[name] = logits.double().log_softmax(1).numpy()
    labels = {label: of.of(label).cpu().numpy() for label in LABELS}
    return Gradients(norms, vanished, smoothness, logs, labels)


def autocorrelation(images: Floats) -> Floats:
    """(N,), the spatial autocorrelation at lag 1 of images (N, C, H, W): the mean product of neighbors, across and
    down, after the image's mean is taken off, divided by the mean square. Near 1 for smooth images, 0 for noise,
    -1 for checkerboards; NaN for constant ones. A measure of our own: the paper shows pictures."""
    values = images / np.maximum(np.abs(images).max((1, 2, 3), keepdims=True), np.finfo(np.float64).tiny)
    values = values - values.mean((1, 2, 3), keepdims=True)
    across = (values[..., :, 1:] * values[..., :, :-1]).reshape(len(values), -1)
    down = (values[..., 1:, :] * values[..., :-1, :]).reshape(len(values), -1)
    products = np.concatenate([across, down], 1).mean(1)
    squares = (values**2).mean((1, 2, 3))
    flat = squares < 1e-24  # of values up to 1: constant but for rounding
    return np.asarray(np.where(flat, np.nan, products / np.where(flat, 1, squares)))


@dataclass(frozen=True)
class Overlap:
    """Of N examples made for one model: how many any set of models gets wrong, all of them together."""

    made_for: str
    models: tuple[str, ...]
    wrong: Bools  # (M, N)

    def both(self, a: str, b: str) -> int:
        """Examples that both get wrong; with a = b, those that this one does."""
        return int((self.wrong[self.models.index(a)] & self.wrong[self.models.index(b)]).sum())

    def either(self, a: str, b: str) -> int:
        """Examples that at least one of the two gets wrong."""
        return int((self.wrong[self.models.index(a)] | self.wrong[self.models.index(b)]).sum())

    def shared(self, a: str, b: str) -> float | None:
        """Their quotient, from 0 (never the same) to 1 (always); None where neither is ever wrong."""
        return self.both(a, b) / either if (either := self.either(a, b)) else None

    def regions(self, models: Iterable[str]) -> dict[str, int]:
        """The regions of the Venn diagram of these models, as the names joined by " + ": the examples that
        exactly these, of the models given, get wrong."""
        models = tuple(models)
        rows = self.wrong[[self.models.index(name) for name in models]]
        codes = (rows * (1 << np.arange(len(models)))[:, None]).sum(0)  # (N,)
        counts = np.bincount(codes, minlength=1 << len(models))
        return {
            " + ".join(name for bit, name in enumerate(models) if code >> bit & 1) or "none": int(number)
            for code, number in enumerate(counts)
        }


def overlaps(of: Transfer, attack: str = "fgsm", epsilon: float = OVERLAP_EPSILON) -> list[Overlap]:
    """The misclassified examples made for each model, as the paper compares them."""
    level = of.epsilons.index(epsilon)
    return [Overlap(name, of.models, ~of.correct[attack][made, level]) for made, name in enumerate(of.models)]


def quantiles(values: Values) -> dict[str, float]:
    """The quantiles in which a distribution is told: of what is not NaN."""
    levels = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
    known = values[~np.isnan(values)]
    return {str(level): float(np.quantile(known, level)) for level in levels} if len(known) else {}


@torch.no_grad()
def _answers(network: Evaluated, images: Tensor) -> Tensor:
    return network(images).argmax(1)


def _parts(count: int) -> list[slice]:
    return [slice(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]
