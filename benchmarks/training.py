"""`python -m benchmarks.training`: what a training step costs, undefended and with the gradient penalty.

Each step is a batch of 256 images (1, 28, 28), forward, backward and Adam. "Plain PyTorch" is the same network
from its own layers, with double backprop through its fused batch norm: the obvious way to write the penalty.
"bfloat16" is `--precision bfloat16`, where the processor has it; all else is float32. All start from the same
weights; loss and gradients of the first step and the accuracy after a short training on the bundled digits are
compared too.
"""

import argparse
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measure import medians
from ml import datasets, defenses
from ml.models import DROPOUT, Network
from ml.step import Step, products_in, products_rounded

PENALTY = 1000.0
DIGITS_PENALTY = defenses.DEFENSES["gradient_regularized"].settings_for("digits")["penalty"]

Gradients = list[Tensor]
Training = Callable[[Tensor, Tensor], tuple[float, Gradients]]  # one step on images and targets


def ours(
    image_shape: tuple[int, int, int], penalty: float, compiled: bool, precision: str | None = None
) -> tuple[nn.Module, Training]:
    """This project's network, and its training step."""
    network = Network(image_shape)
    network.initialize(torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
    objective = defenses.uniform_gradient_penalty if penalty else defenses.plain
    step = Step(objective, {"penalty": penalty} if penalty else {}, compiled)
    generator = torch.Generator().manual_seed(1)

    def once(x: Tensor, targets: Tensor) -> tuple[float, Gradients]:
        optimizer.zero_grad(set_to_none=True)
        with products_in(precision):
            loss, _, statistics = step(network, x, targets, network.dropout_mask(len(x), generator))
            loss.backward()
        optimizer.step()
        network.update_averages(statistics)
        return loss.item(), gradients(network)

    return network, once


class Dropout(nn.Module):
    """PyTorch's dropout, but drawn as this project's is."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(1)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * (torch.rand(x.shape, generator=self.generator) >= DROPOUT).float() / (1 - DROPOUT)


def plain(image_shape: tuple[int, int, int], penalty: float) -> tuple[nn.Module, Training]:
    """The same network written with PyTorch's own layers, and its training step."""
    pixels = image_shape[1] * image_shape[2]
    network = nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(4 * pixels, 1024, bias=False), nn.BatchNorm1d(1024), nn.ReLU(), Dropout(), nn.Linear(1024, 10),
    )  # fmt: skip
    start = Network(image_shape)
    start.initialize(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter, value in zip(network.parameters(), start.parameters(), strict=True):
            parameter.copy_(value)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)

    def once(x: Tensor, targets: Tensor) -> tuple[float, Gradients]:
        x = x.clone().requires_grad_(penalty > 0)
        optimizer.zero_grad(set_to_none=True)
        logits = network(x)
        loss = F.cross_entropy(logits, targets)
        if penalty:
            uniform = F.cross_entropy(logits, torch.full_like(targets, 0.1))
            (gradient,) = torch.autograd.grad(uniform, x, create_graph=True)
            loss = loss + penalty * gradient.square().sum() / 2
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.item(), gradients(network)

    return network, once


def gradients(network: nn.Module) -> Gradients:
    """The gradient of each parameter, first layer first."""
    return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]


def difference(one: Training, other: Training, x: Tensor, targets: Tensor) -> float:
    """The relative difference of the losses of two steps, or of their whole gradients by length if that is larger.

    By length, as rounding may turn a maximum or a ReLU at its edge, which moves one channel's gradient by some
    percent of its largest element: it does so between float32 and float64 of plain PyTorch too.
    """
    (loss, mine), (expected, theirs) = one(x, targets), other(x, targets)
    a, b = (torch.cat([gradient.flatten() for gradient in gradients]) for gradients in (mine, theirs))
    return max(abs(loss / expected - 1), float((a - b).norm() / b.norm()))


def accuracy_on_digits(network: nn.Module, train: Training, epochs: int) -> float:
    """Trains on the bundled digits in batches of 64; the share of test images classified right."""
    digits = datasets.load("digits")
    x = torch.from_numpy(datasets.to_float(digits.train_images))
    targets = F.one_hot(torch.from_numpy(digits.train_labels), 10).float()
    generator = torch.Generator().manual_seed(3)
    for _ in range(epochs):
        order = torch.randperm(len(x), generator=generator)[: len(x) // 64 * 64]
        for index in order.view(-1, 64):
            train(x[index], targets[index])
    network.eval()
    with torch.no_grad():
        right = network(torch.from_numpy(datasets.to_float(digits.test_images))).argmax(1)
    return float((right == torch.from_numpy(digits.test_labels)).float().mean())


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--epochs", type=int, default=6, help="of the short training on digits")
    args = parser.parse_args()
    shape = (1, 28, 28)
    x = torch.rand(256, *shape, generator=torch.Generator().manual_seed(2))
    targets = F.one_hot(torch.arange(256) % 10, 10).float()
    precisions: dict[str, str | None] = {"compiled": None}
    if products_rounded("bfloat16"):
        precisions["bfloat16"] = "bfloat16"
    steps = {
        f"{name}, {way}": step
        for name, penalty in (("undefended", 0.0), ("regularized", PENALTY))
        for way, (_, step) in {
            **{way: ours(shape, penalty, True, precision) for way, precision in precisions.items()},
            "eager": ours(shape, penalty, False),
            "plain PyTorch": plain(shape, penalty),
        }.items()
    }
    differences = [
        difference(steps[f"{name}, compiled"], steps[f"{name}, plain PyTorch"], x, targets)
        for name in ("undefended", "regularized")
    ]
    times = medians({name: partial(step, x, targets) for name, step in steps.items()}, args.repetitions)
    threads = torch.get_num_threads()
    print(f"batch 256, {threads} threads, median of {args.repetitions} interleaved repetitions")
    undefended, pytorch = times["undefended, compiled"], times["undefended, plain PyTorch"]
    print(f"{'step':30}{'time':>10}{'/ undefended compiled':>24}{'/ undefended plain':>20}")
    for name, time in times.items():
        print(f"{name:30}{time * 1000:7.0f} ms{time / undefended:24.2f}{time / pytorch:20.2f}")

    goals = []
    for way in precisions:
        own, penalized = times[f"undefended, {way}"], times[f"regularized, {way}"]
        goals += [
            (f"regularized / undefended, {way}", penalized / own, "<=", 2.2),
            (f"regularized: plain PyTorch / {way}", times["regularized, plain PyTorch"] / penalized, ">=", 3),
            (f"undefended: plain PyTorch / {way}", pytorch / own, ">=", 1.5),
        ]
    goals.append(("difference of loss and gradients from plain PyTorch", max(differences), "<=", 1e-3))
    accuracies = {
        f"{name}, {way}": accuracy_on_digits(*training, args.epochs)
        for name, penalty in (("undefended", 0.0), ("regularized", DIGITS_PENALTY))
        for way, training in {
            "plain PyTorch": plain(shape, penalty),
            **{way: ours(shape, penalty, True, precision) for way, precision in precisions.items()},
        }.items()
    }
    for way in precisions:
        apart = max(
            abs(accuracies[f"{name}, {way}"] - accuracies[f"{name}, plain PyTorch"])
            for name in ("undefended", "regularized")
        )
        goals.append((f"difference of accuracy on digits, {way}", apart, "<=", 0.02))
    print(f"\n{'goal':54}{'measured':>10}{'wanted':>12}")
    for name, value, sense, limit in goals:
        met = value <= limit if sense == "<=" else value >= limit
        print(f"{name:54}{value:10.2g}{f'{sense} {limit:g}':>12}  {'met' if met else 'not met'}")
    print("\naccuracy on digits")
    for name, accuracy in accuracies.items():
        print(f"{name:54}{accuracy:10.3f}")


if __name__ == "__main__":
    main()
