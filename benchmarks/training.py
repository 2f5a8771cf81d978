"""`python -m benchmarks.training`: what a step with the gradient penalty costs, beside an undefended one.

Each step is a batch of 256 images (1, 28, 28), forward, backward and Adam. "Plain PyTorch" is the same network
from its own layers, with double backprop through its fused batch norm: the obvious way to write the penalty.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measure import medians
from ml import defenses
from ml.models import Network
from ml.train import Step

PENALTY = 1000.0


def our_step(
    objective: defenses.Objective, settings: dict[str, float], compiled: bool, x: Tensor, targets: Tensor
) -> Callable[[], None]:
    """One training step of this project."""
    network = Network()
    network.initialize(torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
    step = Step(objective, settings, compiled)
    generator = torch.Generator().manual_seed(1)

    def once() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss, _, statistics = step(network, x, targets, network.dropout_mask(len(x), generator))
        loss.backward()
        optimizer.step()
        network.update_averages(statistics)

    return once


def plain_step(penalty: float, x: Tensor, targets: Tensor) -> Callable[[], None]:
    """One step of the same network written with PyTorch's own layers."""
    network = nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(3136, 1024, bias=False), nn.BatchNorm1d(1024), nn.ReLU(), nn.Dropout(), nn.Linear(1024, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
    pixels = x.clone().requires_grad_(penalty > 0)

    def once() -> None:
        optimizer.zero_grad(set_to_none=True)
        logits = network(pixels)
        loss: Any = F.cross_entropy(logits, targets)
        if penalty:
            uniform = F.cross_entropy(logits, torch.full_like(targets, 0.1))
            (gradient,) = torch.autograd.grad(uniform, pixels, create_graph=True)
            loss = loss + penalty * gradient.square().sum() / 2
        loss.backward()
        optimizer.step()

    return once


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("--repetitions", type=int, default=15)
    repetitions = parser.parse_args().repetitions
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(256, 1, 28, 28, generator=generator)
    targets = F.one_hot(torch.arange(256) % 10, 10).float()
    regularized = {"penalty": PENALTY}
    times = medians(
        {
            "undefended, compiled": our_step(defenses.plain, {}, True, x, targets),
            "undefended, eager": our_step(defenses.plain, {}, False, x, targets),
            "undefended, plain PyTorch": plain_step(0, x, targets),
            "regularized, compiled": our_step(
                defenses.uniform_gradient_penalty, regularized, True, x, targets
            ),
            "regularized, eager": our_step(defenses.uniform_gradient_penalty, regularized, False, x, targets),
            "regularized, plain PyTorch": plain_step(PENALTY, x, targets),
        },
        repetitions,
    )
    compiled, plain = times["undefended, compiled"], times["undefended, plain PyTorch"]
    print(f"batch 256, {torch.get_num_threads()} threads, median of {repetitions} interleaved repetitions")
    print(f"{'step':30}{'time':>10}{'/ undefended compiled':>24}{'/ undefended plain':>20}")
    for name, time in times.items():
        print(f"{name:30}{time * 1000:7.0f} ms{time / compiled:24.2f}{time / plain:20.2f}")


if __name__ == "__main__":
    main()
