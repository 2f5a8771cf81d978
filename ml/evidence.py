"""What verdicts hang on: everything measured, the models by name, and what the paper printed in numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ml.cost import Cost
from ml.intervals import Estimate
from ml.measurements import Bools, Gradients, Transfer
from ml.pictures import Examples, Path
from ml.verdicts import Claim, Number, together

# The two forms of the penalty: against the true label, and against the uniform one, which the study uses.
REGULARIZED = {"gradient_regularized": "uniform", "double_backprop": "true"}
OTHERS = ("undefended", "distilled", "adversarially_trained")
FIVE = (*OTHERS, *REGULARIZED)

NAMES = {
    "undefended": "undefended",
    "distilled": "distilled",
    "adversarially_trained": "adversarially trained",
    "gradient_regularized": "gradient-regularized (uniform label)",
    "double_backprop": "double backprop (true label)",
    "distilled_double_backprop": "distilled + double backprop",
    "entropy_regularized": "entropy-penalized",
    "adversarial_double_backprop": "adversarial + double backprop",
}

# Accuracies that the paper's curves show for MNIST, by the examples' maker and the judge, on FGSM examples.
PUBLISHED = {
    ("undefended", "undefended"): {0.1: 0.73, 0.2: 0.28, 0.3: 0.11},
    ("undefended", "double_backprop"): {0.1: 0.98, 0.2: 0.92, 0.3: 0.80},
}
PUBLISHED_IMAGES = 256  # the first test images, on which these were measured
PUBLISHED_CLEAN = (0.992, 0.994)  # on MNIST, of all models


@dataclass(frozen=True)
class Measured:
    """All measurements of a run; maps are by model."""

    dataset: str
    models: tuple[str, ...]
    clean: Mapping[str, Bools]  # (T,), right answers on all test images
    transfer: Transfer
    gradients: Gradients
    jsma: Mapping[str, Examples]
    tgsm: Mapping[str, Path]
    cost: Cost | None


def decided(
    id: str, title: str, claim: str, criterion: str, numbers: Sequence[Number], figures: tuple[str, ...]
) -> Claim:
    """A claim whose verdict follows from its numbers."""
    return Claim(id, title, claim, criterion, together(numbers), tuple(numbers), figures)


def informing(what: str, shares: Mapping[str, Estimate], but: str = "") -> list[Number]:
    """The shares of all models (but one) as numbers on which no verdict hangs."""
    return [Number(f"{what}: {NAMES[name]}", share, "share") for name, share in shares.items() if name != but]
