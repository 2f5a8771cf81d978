"""What each defense's training costs beside undefended training, measured in one run."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ml import intervals, train
from ml.datasets import Dataset, to_float
from ml.defenses import DEFENSES
from ml.intervals import Estimate
from ml.models import Network
from ml.step import Step, products_in

BASELINE = "undefended"
FEWEST = 6  # repetitions that an interval of a median takes


@dataclass(frozen=True)
class Cost:
    """Seconds of a training step of each objective; the repetitions of all objectives interleave."""

    batch: int
    compiled: bool
    seconds: Mapping[str, tuple[float, ...]]  # by model, teachers among them: one a repetition
    steps: Mapping[str, int]  # of a whole training, by model

    def trainings(self, model: str) -> tuple[str, ...]:
        """The trainings that the model takes: its own, and that of its teacher."""
        teacher = DEFENSES[model].teacher
        return (model,) if teacher is None else (teacher, model)

    def ratio(self, model: str) -> Estimate:
        """The median over repetitions of the cost of all its trainings, in undefended ones."""
        weights = [self.steps[name] / self.steps[BASELINE] for name in self.trainings(model)]
        taken = zip(*(self.seconds[name] for name in self.trainings(model)), strict=True)
        return intervals.median(
            [
                sum(weight * seconds for weight, seconds in zip(weights, own, strict=True)) / one
                for own, one in zip(taken, self.seconds[BASELINE], strict=True)
            ]
        )


def measure(
    dataset: Dataset,
    models: Iterable[str],
    schedule: train.Schedule,
    repetitions: int,
    device: torch.device,
    on_progress: Callable[[int], object] = lambda steps: None,
) -> Cost:
    """Times whole training steps (forward, backward, Adam, running averages) of each model at the schedule's batch
    size, compiled where training by that schedule is. Each objective makes one step that does not count first."""
    batch = min(schedule.batch, len(dataset.train_images))
    compiled = train.compiles(schedule, len(dataset.train_images))
    names = dict.fromkeys([BASELINE, *models])
    names |= dict.fromkeys(teacher for name in names if (teacher := DEFENSES[name].teacher) is not None)
    x = torch.from_numpy(to_float(dataset.train_images[:batch])).to(device)
    targets = (
        F.one_hot(torch.from_numpy(dataset.train_labels[:batch]), len(dataset.labels)).float().to(device)
    )
    ways = {}
    for name in names:
        channels, height, width = dataset.train_images.shape[1:]
        network = Network((channels, height, width), len(dataset.labels), dataset.contrast_normalized)
        network.initialize(torch.Generator().manual_seed(0))
        step = Step(DEFENSES[name].objective, DEFENSES[name].settings_for(dataset.name), compiled)
        ways[name] = whole_step(step, network.to(device), x, targets, schedule.precision)
    times = interleaved(ways, repetitions, on_progress)
    steps = {name: train.schedule_of(name, schedule).steps(len(dataset.train_images)) for name in names}
    return Cost(batch, compiled, {name: tuple(seconds) for name, seconds in times.items()}, steps)


def whole_step(
    step: Step, network: Network, x: Tensor, targets: Tensor, precision: str | None = None
) -> Callable[[], None]:
    """Training a network on images x (N, C, H, W) and target probabilities (N, K): each call is a step on this same
    batch."""
    x = network.normalize(x)
    network.low, network.high = x.min().item(), x.max().item()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
    generator = torch.Generator().manual_seed(1)

    def once() -> None:
        optimizer.zero_grad(set_to_none=True)
        with products_in(precision):
            loss, _, statistics = step(
                network, x, targets, network.dropout_mask(len(x), generator).to(x.device)
            )
            loss.backward()
        optimizer.step()
        network.update_averages(statistics)
        loss.item()  # waits for the GPU

    return once


def interleaved(
    ways: Mapping[str, Callable[[], object]],
    repetitions: int,
    on_progress: Callable[[int], object] = lambda calls: None,
    uncounted: int = 1,
) -> dict[str, list[float]]:
    """Seconds of each call: one call of each way in turn, so that a busy machine slows all alike, after so many
    rounds that are not counted. `on_progress` is called with the number of calls just made."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for repetition in range(uncounted + repetitions):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if repetition >= uncounted:
                times[name].append(time.perf_counter() - started)
            on_progress(1)
    return times
