"""What each defense minimizes: one objective function each, for the one loop in `train`.

An objective takes the network, images x (N, C, H, W), target probabilities (N, K), the dropout mask and its
settings; it returns the loss, the logits (N, K) and the batch statistics of `Network.on_batch`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ml.models import Network, Statistics

Objective = Callable[..., tuple[Tensor, Tensor, Statistics]]


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean over the batch of the cross-entropy between target probabilities (N, K) and softmax(logits)."""
    return -(targets * F.log_softmax(logits, 1)).sum(1).mean()


def plain(
    network: Network, x: Tensor, targets: Tensor, keep: Tensor, *, temperature: float = 1.0
) -> tuple[Tensor, Tensor, Statistics]:
    """Cross-entropy with the softmax at a temperature: 1 for the undefended network, 50 for distillation.

    Defensive distillation: Papernot et al., "Distillation as a Defense to Adversarial Perturbations", 2016.
    """
    logits, statistics = network.on_batch(x, keep)
    return cross_entropy(logits / temperature, targets), logits, statistics


def uniform_gradient_penalty(
    network: Network, x: Tensor, targets: Tensor, keep: Tensor, *, penalty: float
) -> tuple[Tensor, Tensor, Statistics]:
    """Cross-entropy + penalty * sum(v^2) / 2, with v (N, C, H, W) the input gradient of the mean cross-entropy
    against the uniform label 1/K (Ross and Doshi-Velez, 2018, with their code's scaling of the penalty).

    Loss and gradient come from one forward pass, hence from the same dropout mask and batch statistics.
    """

    def uniform_loss(x: Tensor) -> tuple[Tensor, tuple[Tensor, Statistics]]:
        logits, statistics = network.on_batch(x, keep)
        uniform = torch.full_like(targets, 1 / targets.shape[1])
        return cross_entropy(logits, uniform), (logits, statistics)

    gradient, (logits, statistics) = torch.func.grad(uniform_loss, has_aux=True)(x)
    return cross_entropy(logits, targets) + penalty * gradient.square().sum() / 2, logits, statistics


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


DEFENSES: dict[str, Defense] = {
    "undefended": Defense(plain),
    "distillation_teacher": Defense(plain, {"temperature": 50.0}),
    "distilled": Defense(plain, {"temperature": 50.0}, teacher="distillation_teacher"),
    "gradient_regularized": Defense(
        uniform_gradient_penalty,
        {"penalty": 1000.0},
        # The loss is a mean and the penalty a sum over the batch, so that its weight per image goes with
        # 1 / batch; on digits a smaller one than that leaves a model that still learns in its few steps.
        {"digits": {"penalty": 20.0}},
    ),
}
