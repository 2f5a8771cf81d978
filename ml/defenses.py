"""What each defense minimizes: one objective function each, for the one loop in `train`.

An objective takes the network, normalized images x (N, C, H, W), target probabilities (N, K), the dropout mask and
its settings; it returns the loss, the logits (N, K) and the batch statistics of `Network.on_batch`.

To add a defense, write its objective here and give it a line in `DEFENSES`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ml import distributed
from ml.models import Network, Statistics

Trial = tuple[Tensor, Tensor, Statistics]  # loss (), logits (N, K), statistics
Objective = Callable[..., Trial]


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean over the batch of the cross-entropy between target probabilities (N, K) and softmax(logits).

    Where several processes share the batch, this is the part of that mean which this one's slice adds.
    """
    return _mean(-(targets * F.log_softmax(logits, 1)).sum(1))


def entropy(logits: Tensor) -> Tensor:
    """The mean over the batch (as above) of the entropy of softmax(logits), in nats."""
    logs = F.log_softmax(logits, 1)
    return _mean(-(logs.exp() * logs).sum(1))


def plain(network: Network, x: Tensor, targets: Tensor, keep: Tensor, *, temperature: float = 1.0) -> Trial:
    """Cross-entropy with the softmax at a temperature: 1 for the undefended network, 50 for distillation.

    Defensive distillation: Papernot et al., "Distillation as a Defense to Adversarial Perturbations", 2016.
    """
    logits, statistics = network.on_batch(x, keep)
    return cross_entropy(logits / temperature, targets), logits, statistics


def uniform_gradient_penalty(
    network: Network, x: Tensor, targets: Tensor, keep: Tensor, *, penalty: float
) -> Trial:
    """Cross-entropy + penalty * l2 of the input gradient of the mean cross-entropy against the uniform label
    1/K (Ross and Doshi-Velez, 2018, with their code's scaling of the penalty).

    l2(v) is sum(v^2) / 2 over the whole batch, here and below.
    """

    def against_uniform(logits: Tensor) -> Tensor:
        return cross_entropy(logits, torch.full_like(targets, 1 / targets.shape[1]))

    l2, logits, statistics = _gradient_l2(network, x, keep, against_uniform)
    return cross_entropy(logits, targets) + penalty * l2, logits, statistics


def double_backprop(
    network: Network, x: Tensor, targets: Tensor, keep: Tensor, *, penalty: float, temperature: float = 1.0
) -> Trial:
    """Cross-entropy + penalty * l2 of its own input gradient (Drucker and Le Cun, "Improving Generalization
    Performance Using Double Backpropagation", 1992); with a temperature, on distilled probabilities."""

    def own_loss(logits: Tensor) -> Tensor:
        return cross_entropy(logits / temperature, targets)

    l2, logits, statistics = _gradient_l2(network, x, keep, own_loss)
    return own_loss(logits) + penalty * l2, logits, statistics


def entropy_gradient_penalty(
    network: Network, x: Tensor, targets: Tensor, keep: Tensor, *, penalty: float
) -> Trial:
    """Cross-entropy + penalty * l2 of the input gradient of the mean entropy of the network's own predictions
    (tried by Ross and Doshi-Velez, 2018)."""
    l2, logits, statistics = _gradient_l2(network, x, keep, entropy)
    return cross_entropy(logits, targets) + penalty * l2, logits, statistics


def adversarial_training(
    network: Network, x: Tensor, targets: Tensor, keep: Tensor, *, epsilon: float, penalty: float = 0.0
) -> Trial:
    """The mean of the loss on x and that on FGSM examples of x, made against the labels that the network itself
    predicts (Kurakin et al., "Adversarial Machine Learning at Scale", 2017) and held constant; with a penalty, the
    loss on x is that of `double_backprop`.

    Epsilon is in normalized units; examples stay in the range of the training images.
    """

    logits, statistics, pullback = network.with_pullback(x, keep)
    predicted = F.one_hot(logits.detach().argmax(1), targets.shape[1]).to(logits.dtype)
    gradient = pullback(torch.func.grad(cross_entropy)(logits, predicted))
    examples = (x + epsilon * gradient.sign()).clamp(network.low, network.high).detach()
    if penalty:
        clean, logits, statistics = double_backprop(network, x, targets, keep, penalty=penalty)
    else:
        clean = cross_entropy(logits, targets)
    attacked, attacked_statistics = network.on_batch(examples, keep)
    both = [(a + b) / 2 for a, b in zip(statistics, attacked_statistics, strict=True)]
    return (clean + cross_entropy(attacked, targets)) / 2, logits, both


def _mean(values: Tensor) -> Tensor:
    return values.mean() / distributed.processes()


def _gradient_l2(
    network: Network, x: Tensor, keep: Tensor, loss: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, Statistics]:
    """sum(v^2) / 2 of the input gradient v of loss(logits), with logits and statistics of the one forward pass
    that it comes from: the same dropout mask and batch statistics."""

    logits, statistics, pullback = network.with_pullback(x, keep)
    gradient = pullback(torch.func.grad(loss)(logits))
    return gradient.square().sum() / 2, logits, statistics


@dataclass(frozen=True)
class Defense:
    """A way to train the network.

    `settings` are the objective's keyword arguments and `for_dataset` the ones that differ by data set;
    `teacher` names the model whose softmax probabilities at the same temperature replace the labels.
    """

    objective: Objective
    settings: Mapping[str, float] = field(default_factory=dict)
    for_dataset: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    teacher: str | None = None

    def settings_for(self, dataset: str) -> dict[str, float]:
        """All keyword arguments of the objective on this data set."""
        return {**self.settings, **self.for_dataset.get(dataset, {})}


# The loss is a mean and the penalty a sum over the batch, so that its weight per image goes with 1 / batch; on
# digits a smaller one than that leaves a model that still learns in its few steps.
_UNIFORM = {"notmnist": {"penalty": 178.0}, "digits": {"penalty": 20.0}}
_TRUE_LABEL = {"svhn": {"penalty": 10000.0}, "notmnist": {"penalty": 562.0}, "digits": {"penalty": 200.0}}

DEFENSES: dict[str, Defense] = {
    "undefended": Defense(plain),
    "distillation_teacher": Defense(plain, {"temperature": 50.0}),
    "distilled": Defense(plain, {"temperature": 50.0}, teacher="distillation_teacher"),
    "adversarially_trained": Defense(adversarial_training, {"epsilon": 0.3}),
    "gradient_regularized": Defense(uniform_gradient_penalty, {"penalty": 1000.0}, _UNIFORM),
    "double_backprop": Defense(double_backprop, {"penalty": 56234.0}, _TRUE_LABEL),
    "distilled_double_backprop": Defense(
        double_backprop,
        {"penalty": 56234.0, "temperature": 50.0},
        _TRUE_LABEL,
        teacher="distillation_teacher",
    ),
    "entropy_regularized": Defense(entropy_gradient_penalty, {"penalty": 1000.0}, _UNIFORM),
    "adversarial_double_backprop": Defense(
        adversarial_training, {"epsilon": 0.3, "penalty": 56234.0}, _TRUE_LABEL
    ),
}

# What the paper tried besides the five that it compares.
COMBINATIONS = ("distilled_double_backprop", "entropy_regularized", "adversarial_double_backprop")
