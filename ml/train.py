"""Trains any defense by one loop: compiled where that pays, over several processes, going on after being killed."""

import argparse
import hashlib
import itertools
import math
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ml import checkpoints as files
from ml import distributed, folders
from ml.checkpoints import CheckpointError, Trained
from ml.datasets import Dataset, to_float
from ml.defenses import DEFENSES, Objective
from ml.models import Network
from ml.step import Step, products_in, products_rounded

# Part of every checkpoint's identity: raise it when a change of how networks are trained (here, in `defenses`,
# `models` or `input_gradient`) makes old checkpoints not comparable.
RECIPE = 1

# torch.compile takes a minute or two; below this many steps eager training ends sooner.
COMPILE_FROM_STEPS = 300

ACCURACY_TOLERANCE = 0.002  # of clean_accuracy, asked again: rounding elsewhere may turn an image or two


class TrainingError(RuntimeError):
    """Training cannot go on; the message is one line that says why."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: Adam over `epochs` passes in shuffled batches, or over `batches` of them in all.

    `precision` "bfloat16" is that of `products_in`; None is float32.
    """

    epochs: int | None = 4
    batch: int = 256
    learning_rate: float = 1e-3
    adam_epsilon: float = 1e-8
    batches: int | None = None
    precision: str | None = None

    def steps(self, images: int) -> int:
        """Steps in all. An epoch leaves out the last part of a batch: another one each time."""
        return self.batches or (self.epochs or 0) * (images // min(self.batch, images))


# The schedules of the paper: its study's, and that of its figures.
SCHEDULES = {
    "study": Schedule(),
    "long": Schedule(epochs=None, batches=15_000, learning_rate=2e-4, adam_epsilon=1e-4),
}
_MOST_TEACHER_BATCHES = 10_000


def schedule_for(
    dataset: str, kind: str = "study", epochs: int | None = None, precision: str = "float32"
) -> Schedule:
    """The schedule `kind`, with another number of epochs if given; digits, to be tried in a minute, has smaller
    batches and so steps enough. Raises TrainingError for epochs of a schedule that counts batches."""
    schedule = replace(SCHEDULES[kind], precision=None if precision == "float32" else precision)
    if schedule.epochs is None and epochs is not None:
        raise TrainingError(f"the schedule {kind!r} has {schedule.batches} batches; leave out --epochs")
    if dataset == "digits" and kind == "study":
        schedule = replace(schedule, epochs=3, batch=64)
    return schedule if epochs is None else replace(schedule, epochs=epochs)


def schedule_of(model: str, schedule: Schedule) -> Schedule:
    """The schedule as this model is trained by it: a teacher makes at most 10,000 batches, as in the paper."""
    if model == "distillation_teacher" and schedule.batches:
        return replace(schedule, batches=min(schedule.batches, _MOST_TEACHER_BATCHES))
    return schedule


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of every command that trains."""
    parser.add_argument(
        "--schedule",
        choices=sorted(SCHEDULES),
        default="study",
        help="the paper's study: 4 epochs at 0.001 (default); long, that of its figures: 15,000 batches at 0.0002",
    )
    parser.add_argument(
        "--epochs", type=_positive, help="passes over the training images (default: 4; digits 3)"
    )
    parser.add_argument(
        "--precision",
        choices=["float32", "bfloat16"],
        default="float32",
        help="bfloat16: train faster on a CPU that multiplies such numbers, with other rounding",
    )
    parser.add_argument(
        "--penalty",
        type=_penalty,
        action="append",
        default=[],
        metavar="MODEL=LAMBDA",
        help="another gradient penalty for a model than the paper's, once for each",
    )
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument(
        "--checkpoints", type=Path, default=Path("checkpoints"), help="where trained models are"
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def _penalty(text: str) -> tuple[str, float]:
    model, _, value = text.partition("=")
    able = [name for name, defense in DEFENSES.items() if "penalty" in defense.settings]
    if model not in able:
        raise argparse.ArgumentTypeError(f"{model!r} is not one of {', '.join(able)}")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{value!r} is not a number of 0 or more")
    return model, number


def check_writable(path: Path, option: str) -> None:
    """Raises TrainingError, which names the option, unless the first process can write at `path` in the end."""
    if (reason := distributed.everyones(folders.obstacle(path))[0]) is not None:
        raise TrainingError(f"{option}: {str(path)!r} cannot be written ({reason})")


def pick_device(name: str) -> torch.device:
    """The device for "auto", "cpu" or "cuda"; raises TrainingError for a GPU that is not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise TrainingError("--device cuda: PyTorch finds no GPU here; use --device cpu or auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    # TF32 would round what a CPU, asked again about the same PNG, does not.
    torch.backends.cudnn.allow_tf32 = False
    return torch.device(name)


def obtain(
    model: str,
    dataset: Dataset,
    schedule: Schedule,
    seed: int,
    device: torch.device,
    checkpoints: Path,
    settings: dict[str, float] | None = None,
) -> Trained:
    """The trained model: from its checkpoint where configuration, seed and data agree, else trained now.

    `checkpoints` is the root folder. `settings` replace the defense's own. A training that was interrupted goes
    on from its last epoch, with the same result. Raises TrainingError.
    """
    config = configuration(model, dataset, schedule, seed, settings)
    path = files.path_of(checkpoints, config)
    if all(distributed.everyones(path.exists())):
        try:
            return files.load(path, device, config)
        except CheckpointError as error:
            print(f"{error}; training it again", file=sys.stderr)
    check_writable(path, "--checkpoints")

    defense = DEFENSES[model]
    labels = torch.from_numpy(dataset.train_labels)
    targets = F.one_hot(labels, len(dataset.labels)).float()  # (N, K)
    if defense.teacher is not None:
        teacher = obtain(defense.teacher, dataset, schedule, seed, device, checkpoints).network
        temperature = config["settings"]["temperature"]
        targets = torch.softmax(predict(teacher, dataset.train_images) / temperature, 1)
    network = fit(config, defense.objective, dataset.train_images, labels, targets, device, path)
    if distributed.first():
        correct = predict(network, dataset.test_images).argmax(1) == torch.from_numpy(dataset.test_labels)
        files.save(path, network, config, correct.double().mean().item())
        files.progress_path(path).unlink(missing_ok=True)
    distributed.wait()
    try:
        return files.load(path, device, config)
    except CheckpointError as error:
        raise TrainingError(str(error)) from None


def configuration(
    model: str, dataset: Dataset, schedule: Schedule, seed: int, settings: dict[str, float] | None = None
) -> dict[str, Any]:
    """Everything that decides what a checkpoint holds, as JSON."""
    schedule = schedule_of(model, schedule)
    settings = DEFENSES[model].settings_for(dataset.name) | (settings or {})
    further: dict[str, Any] = {"contrast_normalized": True} if dataset.contrast_normalized else {}
    if teacher := DEFENSES[model].teacher:
        of_teacher = DEFENSES[teacher].settings_for(dataset.name)
        if not of_teacher.items() <= settings.items():
            further["teacher_settings"] = of_teacher
    return {
        "recipe": RECIPE,
        "model": model,
        "dataset": dataset.name,
        "data_sha256": dataset.sha256,
        "image_shape": list(dataset.train_images.shape[1:]),
        "classes": len(dataset.labels),
        "settings": settings,
        "teacher": teacher,
        "schedule": {key: value for key, value in asdict(schedule).items() if value is not None},
        "seed": seed,
    } | further


def fit(
    config: dict[str, Any],
    objective: Objective,
    images: npt.NDArray[np.uint8],
    labels: Tensor,
    targets: Tensor,
    device: torch.device,
    path: Path | None = None,
) -> Network:
    """Trains a fresh network on images (N, C, H, W) towards target probabilities (N, K).

    The labels (N,) only serve the accuracy shown. Everything random follows from the configuration's seed and
    model and the epoch. With a `path`, each epoch is kept beside it and a training found there goes on: on a CPU
    the result has the same bits. Several processes share each batch. Raises TrainingError.
    """
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    model, seed, schedule = (
        config["model"],
        config["seed"],
        Schedule(**{"epochs": None, **config["schedule"]}),
    )
    if schedule.precision and (device.type != "cpu" or not products_rounded(schedule.precision)):
        raise TrainingError(f"{device.type} here cannot train with products in {schedule.precision}")
    batch, total = min(schedule.batch, len(images)), schedule.steps(len(images))
    if batch % distributed.processes():
        raise TrainingError(
            f"a batch of {batch} images cannot be shared by {distributed.processes()} processes"
        )
    try:
        network = files.fresh_network(config)
    except ValueError as error:
        raise TrainingError(f"{model}: {error}") from None
    network.initialize(_generator(seed, model, "weights"))
    network.to(device)
    optimizer = torch.optim.Adam(
        network.parameters(), lr=schedule.learning_rate, eps=schedule.adam_epsilon, fused=True
    )
    x, y, targets = torch.from_numpy(to_float(images)).to(device), labels.to(device), targets.to(device)
    x = network.normalize(x)
    network.low, network.high = x.min().item(), x.max().item()
    step = Step(objective, config["settings"], compiles(schedule, len(images)))
    done = _restored(path, network, optimizer, config)

    per_epoch = len(x) // batch
    with tqdm(
        total=total, initial=done, desc=f"train {model}", unit="batch", disable=not distributed.first()
    ) as bar:
        for epoch in range(done // per_epoch, math.ceil(total / per_epoch)):
            generator = _generator(seed, model, f"epoch {epoch}")
            order = torch.randperm(len(x), generator=generator)[: per_epoch * batch].to(device)
            seen, right = 0, 0
            for index in order.view(per_epoch, batch)[: total - done]:
                keep = distributed.mine(network.dropout_mask(batch, generator)).to(device)
                index = distributed.mine(index)
                optimizer.zero_grad(set_to_none=True)
                with products_in(schedule.precision):
                    loss, logits, statistics = step(network, x[index], targets[index], keep)
                    loss.backward()
                distributed.add_up([p.grad for p in network.parameters() if p.grad is not None])
                optimizer.step()
                network.update_averages(statistics)
                seen, right = seen + len(index), right + int((logits.argmax(1) == y[index]).sum())
                loss = loss.detach()
                distributed.add_up([loss])
                value = loss.item()
                if not math.isfinite(value):
                    raise TrainingError(f"training {model}: the loss became {value}; lower the learning rate")
                done += 1
                bar.set_postfix(
                    epoch=epoch + 1, loss=f"{value:.3f}", accuracy=f"{right / seen:.3f}", refresh=False
                )
                bar.update()
            if path is not None and done < total and distributed.first():
                files.save_progress(path, network, optimizer, config, done)
    return network


def _restored(
    path: Path | None, network: Network, optimizer: torch.optim.Optimizer, config: dict[str, Any]
) -> int:
    """Steps that an interrupted training had made, and network and optimizer as they were then."""
    if path is None:
        return 0
    try:
        steps = files.restore_progress(path, network, optimizer, config)
    except CheckpointError as error:
        print(f"{error}; beginning anew", file=sys.stderr)
        steps = 0
    if len(set(distributed.everyones(steps))) > 1:
        raise TrainingError(f"{files.progress_path(path)}: not the same for all processes; delete it")
    if steps and distributed.first():
        tqdm.write(f"training {config['model']} goes on from step {steps}")
    return steps


def compiles(schedule: Schedule, images: int) -> bool:
    """Whether a training on so many images is compiled. What couples several processes is beyond the compiler."""
    return schedule.steps(images) >= COMPILE_FROM_STEPS and distributed.processes() == 1


@torch.no_grad()
def predict(network: torch.nn.Module, images: npt.NDArray[np.uint8], chunk: int = 1000) -> Tensor:
    """Logits (N, K), on the CPU, of 8-bit images (N, C, H, W)."""
    device = device_of(network)
    parts = [images[start : start + chunk] for start in range(0, len(images), chunk)]
    return torch.cat([network(torch.from_numpy(to_float(part)).to(device)).cpu() for part in parts])


def right_answers(model: Trained, dataset: Dataset) -> npt.NDArray[np.bool_]:
    """(N,), whether the model is right about each test image; TrainingError if it is no longer what was trained."""
    right = predict(model.network, dataset.test_images).argmax(1).numpy() == dataset.test_labels
    if abs(float(right.mean()) - model.clean_accuracy) > ACCURACY_TOLERANCE:
        raise TrainingError(
            f"{model.checkpoint}: an accuracy of {right.mean():.4f} where the checkpoint says "
            f"{model.clean_accuracy:.4f}; it is damaged: delete it, and the next run trains it again"
        )
    return np.asarray(right)


def device_of(network: torch.nn.Module) -> torch.device:
    """Where a network computes; the CPU for one that has no tensors of its own."""
    for tensor in itertools.chain(network.parameters(), network.buffers()):
        return tensor.device
    return torch.device("cpu")


def _generator(seed: int, model: str, purpose: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{model}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7]))
