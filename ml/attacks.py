"""Attacks on any function from pixels (N, C, H, W) in [0, 1] to logits (N, K).

An attack that stimulus packs are made with takes a batch of (image, target) pairs and returns an `AttackResult`,
whose predictions come from a fresh forward pass over the finished images, never from the loop that made them. To
add one, write its function here and give it a line in `ATTACKS`.

`loss_gradient` and `stepped` make single steps: the fast gradient sign method, FGSM (Goodfellow et al., "Explaining
and Harnessing Adversarial Examples", 2015), goes along the gradient of the true label's cross-entropy, TGSM against
that of a target's.

Epsilons are in units of `units` pixels, (N, 1, 1, 1): 1 by default, and each image's own standard deviation where
the network normalizes contrast (`Network.units`), as in the paper.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Model = Callable[[Tensor], Tensor]

# Pairs attacked at once: enough to keep the arithmetic busy, few enough that activations stay near the
# processor; memory does not grow beyond it.
CHUNK = 250

# Entries of the tables in which pairs of candidate pixels are compared; only gradients full of ties come near.
_TABLE = 1 << 24


@dataclass(frozen=True)
class AttackResult:
    """What an attack made of N (image, target) pairs."""

    images: Tensor  # (N, C, H, W), in [0, 1]
    iterations: Tensor  # (N,), steps made
    predictions: Tensor  # (N,), the model's labels for `images`, measured afresh
    success: Tensor  # (N,), whether the prediction is the target


def jsma(
    model: Model,
    images: Tensor,
    targets: Tensor,
    theta: float = 1.0,
    gamma: float = 0.25,
    on_progress: Callable[[int], object] = lambda finished: None,
) -> AttackResult:
    """The Jacobian-based saliency map attack (Papernot et al., "The Limitations of Deep Learning in
    Adversarial Settings", 2016, algorithms 2 and 3), on logits, over all pairs at once.

    Each step adds `theta` to the two pixels (p, q) that maximize -alpha * beta, where alpha > 0 is the sum of
    the target logit's gradient over the two and beta < 0 that of all other logits together. Pixels at the end
    of their range leave the search domain. A pair is finished once the model answers its target, when no two
    pixels qualify, or when `gamma` of the pixels could have been changed (two a step, rounded down).

    Args:
        model: differentiable, pixels to logits (N, K).
        images: (N, C, H, W) floating point in [0, 1].
        targets: (N,) integer labels.
        theta: change of a pixel a step, in (0, 1], or in [-1, 0) to darken pixels.
        gamma: largest share of the pixels to change, in [0, 1].
        on_progress: called with the number of pairs that have just finished.

    Raises:
        ValueError: a shape, dtype or parameter outside these ranges.
    """
    _check(images, targets)
    if not 0 < abs(theta) <= 1 or not 0 <= gamma <= 1:
        raise ValueError(f"theta {theta} must be in [-1, 1] and not 0, gamma {gamma} in [0, 1]")
    parts = [
        _jsma_chunk(model, chunk, chunk_targets, theta, gamma, on_progress)
        for chunk, chunk_targets in zip(_split(images, CHUNK), _split(targets, CHUNK), strict=True)
    ]
    return _measure(model, [part[0] for part in parts], [part[1] for part in parts], targets)


def _jsma_chunk(
    model: Model,
    images: Tensor,
    targets: Tensor,
    theta: float,
    gamma: float,
    on_progress: Callable[[int], object],
) -> tuple[Tensor, Tensor]:
    """Attacked images (N, C, H, W) and the steps made (N,)."""
    result = images.detach().clone()
    iterations = torch.zeros_like(targets)
    active = torch.arange(len(images), device=images.device)  # positions of the pairs not finished
    limit = int(images[0].numel() * gamma / 2)
    for step in range(limit + 1):
        x = result[active].requires_grad_()  # (A, C, H, W)
        logits = model(x)  # (A, K)
        wanted = logits.detach().argmax(1) != targets[active]  # (A,)
        if step == limit or not wanted.any():
            break
        toward, total = _two_products(logits, x, targets[active])  # (A, D) each
        pixels = x.detach().flatten(1)  # (A, D)
        domain = pixels < 1 if theta > 0 else pixels > 0
        p, q, found = best_pair(toward, toward - total, domain & wanted[:, None])
        rows = found.nonzero().squeeze(1)
        for pixel in (p, q):
            pixels[rows, pixel[rows]] = (pixels[rows, pixel[rows]] + theta).clamp(0, 1)
        on_progress(len(active) - len(rows))
        active = active[rows]
        result[active] = pixels[rows].view(-1, *images.shape[1:])
        iterations[active] += 1
    on_progress(len(active))
    return result, iterations


def _two_products(logits: Tensor, x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients (A, D) of the target logit and of the sum of all logits: two vector-Jacobian products instead
    of the K that the whole Jacobian takes, as the attack needs the other logits only together."""
    one_hot = F.one_hot(targets, logits.shape[1]).to(logits.dtype)
    (toward,) = torch.autograd.grad(logits, x, one_hot, retain_graph=True)
    (total,) = torch.autograd.grad(logits, x, torch.ones_like(logits))
    return toward.flatten(1), total.flatten(1)


def best_pair(a: Tensor, b: Tensor, domain: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Per row, the two positions in `domain` with the largest (a_p + a_q) * (b_p + b_q), both factors positive.

    A pixel that two others beat or equal in both a and b is never needed: one of the two is not its partner
    yet, and in its place makes the product no smaller. In descending order of a, a pixel is beaten by those
    before it with a b no smaller, hence needed only if its b exceeds the second largest b before it. So the
    search is over a few dozen pixels, not all pairs.

    Args:
        a: (N, D), here the gradient of the target logit.
        b: (N, D), here minus the gradient of the other logits.
        domain: (N, D) bool, positions that may be chosen.

    Returns:
        p, q: (N,) positions, and found: (N,) bool, false where no two positions qualify (p, q mean nothing).
    """
    outside = -torch.inf
    a, order = a.masked_fill(~domain, outside).sort(dim=1, descending=True)
    b = b.masked_fill(~domain, outside).gather(1, order)
    largest = b.cummax(1).values
    second = torch.full_like(b, outside)  # second[k]: the second largest of b[: k + 1]
    second[:, 1:] = torch.minimum(b[:, 1:], largest[:, :-1]).cummax(1).values
    needed = b > torch.cat([torch.full_like(b[:, :1], outside), second[:, :-1]], 1)  # (N, D)

    # The needed positions of every row, packed to the left of a narrow table (N, M).
    rank = needed.cumsum(1) - 1
    rows, columns = needed.nonzero(as_tuple=True)
    width = max(int(rank[:, -1].max()) + 1, 2) if len(a) else 2
    packed = a.new_full((3, len(a), width), outside)
    packed[0, rows, rank[rows, columns]] = a[rows, columns]
    packed[1, rows, rank[rows, columns]] = b[rows, columns]
    original = order.new_zeros((len(a), width))
    original[rows, rank[rows, columns]] = order[rows, columns]

    first, last = torch.triu_indices(width, width, offset=1, device=a.device)  # (M (M - 1) / 2,)
    choices, values = [], []
    for part_a, part_b in zip(
        _split(packed[0], max(1, _TABLE // width**2)),
        _split(packed[1], max(1, _TABLE // width**2)),
        strict=True,
    ):
        sum_a = part_a[:, first] + part_a[:, last]  # (N, pairs)
        sum_b = part_b[:, first] + part_b[:, last]
        product = torch.where((sum_a > 0) & (sum_b > 0), sum_a * sum_b, outside)
        value, choice = product.max(1)
        choices.append(choice)
        values.append(value)
    choice, value = torch.cat(choices), torch.cat(values)
    row = torch.arange(len(a), device=a.device)
    return original[row, first[choice]], original[row, last[choice]], value > outside


def iterated_tgsm(
    model: Model,
    images: Tensor,
    targets: Tensor,
    steps: int = 10,
    epsilon: float = 0.1,
    units: Tensor | None = None,
    on_progress: Callable[[int], object] = lambda finished: None,
) -> AttackResult:
    """The iterated targeted gradient sign method (Kurakin et al., "Adversarial Examples in the Physical
    World", 2017; here as Ross and Doshi-Velez, 2018, use it: every step counts, none ends early).

    `steps` times x - epsilon * units * sign(gradient of the cross-entropy of the target), clipped to [0, 1]. Shapes
    and errors as for `jsma`.
    """
    _check(images, targets)
    if steps < 0 or epsilon < 0:
        raise ValueError(f"steps {steps} and epsilon {epsilon} must not be negative")
    change = epsilon * (torch.ones_like(images[:, :1, :1, :1]) if units is None else units)
    parts = []
    for x, chunk_targets, chunk_change in zip(
        _split(images, CHUNK), _split(targets, CHUNK), _split(change, CHUNK), strict=True
    ):
        for _ in range(steps):
            x = (x - chunk_change * _loss_gradient(model, x, chunk_targets).sign()).clamp(0, 1)
        parts.append(x.detach())
        on_progress(len(x))
    return _measure(model, parts, [torch.full_like(targets, steps)], targets)


# What `generate` attacks with, and the parameters that a pack names. `units` and `on_progress` are given to those
# that have them.
ATTACKS: dict[str, tuple[Callable[..., AttackResult], dict[str, Any]]] = {
    "jsma": (jsma, {"theta": 1.0, "gamma": 0.25}),
    "tgsm": (iterated_tgsm, {"steps": 10, "epsilon": 0.1}),
}


def stepped(images: Tensor, direction: Tensor, epsilon: float, units: Tensor | None = None) -> Tensor:
    """Images moved by epsilon * units along the sign of a direction (N, C, H, W), clipped to [0, 1]."""
    return (images + epsilon * (1.0 if units is None else units) * direction.sign()).clamp(0, 1)


def loss_gradient(model: Model, images: Tensor, labels: Tensor) -> Tensor:
    """The gradient (N, C, H, W) of each image's cross-entropy against its label, with respect to its pixels."""
    parts = [
        _loss_gradient(model, part, part_labels)
        for part, part_labels in zip(_split(images, CHUNK), _split(labels, CHUNK), strict=True)
    ]
    return torch.cat(parts)


def _loss_gradient(model: Model, images: Tensor, labels: Tensor) -> Tensor:
    x = images.detach().requires_grad_()
    # The sum, as the mean over the batch would only bring small gradients nearer to underflow.
    loss = F.cross_entropy(model(x), labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, x)
    return gradient


def _check(images: Tensor, targets: Tensor) -> None:
    if images.ndim != 4 or not images.is_floating_point() or images.numel() == 0:
        raise ValueError(
            f"expected floating-point images (N, C, H, W), got {images.dtype} {tuple(images.shape)}"
        )
    if targets.shape != images.shape[:1] or targets.dtype != torch.int64:
        raise ValueError(
            f"expected int64 targets ({len(images)},), got {targets.dtype} {tuple(targets.shape)}"
        )
    if not (images.min() >= 0 and images.max() <= 1):
        raise ValueError("pixels must be in [0, 1]")


def _split(tensor: Tensor, size: int) -> list[Tensor]:
    return [tensor[start : start + size] for start in range(0, len(tensor), size)]


@torch.no_grad()
def _measure(model: Model, parts: list[Tensor], iterations: list[Tensor], targets: Tensor) -> AttackResult:
    predictions = torch.cat([model(part).argmax(1) for part in parts])
    return AttackResult(torch.cat(parts), torch.cat(iterations), predictions, predictions == targets)
