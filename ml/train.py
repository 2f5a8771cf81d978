"""Trains any defense by one loop, and keeps the result in a checkpoint that says how it was made."""

import hashlib
import json
import math
import os
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ml.datasets import Dataset, to_float
from ml.defenses import DEFENSES, Objective
from ml.models import Network
from ml.pack import canonical_json

# Part of every checkpoint's identity: raise it when a change here makes old checkpoints not comparable.
RECIPE = 1

# torch.compile takes a minute or two; below this many steps eager training ends sooner.
_COMPILE_FROM_STEPS = 300

_METADATA = "reasonable_mistakes"  # one key, because safetensors does not keep an order among several


class TrainingError(RuntimeError):
    """Training cannot go on; the message is one line that says why."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: Adam over `epochs` passes in shuffled batches."""

    epochs: int = 4
    batch: int = 256
    learning_rate: float = 1e-3
    adam_epsilon: float = 1e-8


@dataclass(frozen=True)
class Trained:
    """A network with the checkpoint that holds it. `config` identifies it; `clean_accuracy` is in [0, 1]."""

    network: Network
    config: dict[str, Any]
    clean_accuracy: float
    checkpoint: Path
    checkpoint_sha256: str
    versions: dict[str, str]


def schedule_for(dataset: str, epochs: int | None = None) -> Schedule:
    """The study's schedule; digits, to be tried in under a minute, has smaller batches and so steps enough."""
    schedule = Schedule(epochs=3, batch=64) if dataset == "digits" else Schedule()
    return schedule if epochs is None else Schedule(**{**asdict(schedule), "epochs": epochs})


def pick_device(name: str) -> torch.device:
    """The device for "auto", "cpu" or "cuda"; raises TrainingError for a GPU that is not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise TrainingError("--device cuda: PyTorch finds no GPU here; use --device cpu or auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def obtain(
    model: str, dataset: Dataset, schedule: Schedule, seed: int, device: torch.device, checkpoints: Path
) -> Trained:
    """The trained model: from its checkpoint where configuration, seed and data agree, else trained now.

    `checkpoints` is the root folder; the file is `<dataset>/<model>-<identity>.safetensors` under it.
    """
    config = configuration(model, dataset, schedule, seed)
    identity = hashlib.sha256(canonical_json(config)).hexdigest()[:12]
    path = checkpoints / dataset.name / f"{model}-{identity}.safetensors"
    if path.exists():
        try:
            return _restore(path, config, device)
        except TrainingError as error:
            print(f"{error}; training it again", file=sys.stderr)

    defense = DEFENSES[model]
    labels = torch.from_numpy(dataset.train_labels)
    targets = F.one_hot(labels, len(dataset.labels)).float()  # (N, K)
    if defense.teacher is not None:
        teacher = obtain(defense.teacher, dataset, schedule, seed, device, checkpoints).network
        temperature = config["settings"]["temperature"]
        targets = torch.softmax(predict(teacher, dataset.train_images) / temperature, 1)
    network = fit(
        model,
        defense.objective,
        config["settings"],
        dataset.train_images,
        labels,
        targets,
        schedule,
        seed,
        device,
    )
    correct = predict(network, dataset.test_images).argmax(1) == torch.from_numpy(dataset.test_labels)
    _save(path, network, config, correct.double().mean().item())
    return _restore(path, config, device)


def configuration(model: str, dataset: Dataset, schedule: Schedule, seed: int) -> dict[str, Any]:
    """Everything that decides what a checkpoint holds, as JSON."""
    return {
        "recipe": RECIPE,
        "model": model,
        "dataset": dataset.name,
        "data_sha256": dataset.sha256,
        "image_shape": list(dataset.train_images.shape[1:]),
        "classes": len(dataset.labels),
        "settings": DEFENSES[model].settings_for(dataset.name),
        "teacher": DEFENSES[model].teacher,
        "schedule": asdict(schedule),
        "seed": seed,
    }


def fit(
    model: str,
    objective: Objective,
    settings: dict[str, float],
    images: npt.NDArray[np.uint8],
    labels: Tensor,
    targets: Tensor,
    schedule: Schedule,
    seed: int,
    device: torch.device,
) -> Network:
    """Trains a fresh network on images (N, C, H, W) towards target probabilities (N, K).

    The labels (N,) only serve the accuracy shown. Everything random follows from seed, model and epoch.
    """
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    channels, height, width = images.shape[1:]
    network = Network((channels, height, width), targets.shape[1])
    network.initialize(_generator(seed, model, "weights"))
    network.to(device)
    optimizer = torch.optim.Adam(
        network.parameters(), lr=schedule.learning_rate, eps=schedule.adam_epsilon, fused=True
    )
    x, y, targets = torch.from_numpy(to_float(images)).to(device), labels.to(device), targets.to(device)
    batch = min(schedule.batch, len(x))
    steps = len(x) // batch  # an epoch leaves out the last part of a batch: another one each time
    step = Step(objective, settings, compiled=steps * schedule.epochs >= _COMPILE_FROM_STEPS)

    with tqdm(total=steps * schedule.epochs, desc=f"train {model}", unit="batch", leave=True) as bar:
        for epoch in range(schedule.epochs):
            generator = _generator(seed, model, f"epoch {epoch}")
            order = torch.randperm(len(x), generator=generator)[: steps * batch].to(device)
            seen, right = 0, 0
            for index in order.view(steps, batch):
                keep = network.dropout_mask(batch, generator).to(device)
                optimizer.zero_grad(set_to_none=True)
                loss, logits, statistics = step(network, x[index], targets[index], keep)
                loss.backward()
                optimizer.step()
                network.update_averages(statistics)
                seen, right = seen + batch, right + int((logits.argmax(1) == y[index]).sum())
                value = loss.item()
                if not math.isfinite(value):
                    raise TrainingError(f"training {model}: the loss became {value}; lower the learning rate")
                bar.set_postfix(
                    epoch=epoch + 1, loss=f"{value:.3f}", accuracy=f"{right / seen:.3f}", refresh=False
                )
                bar.update()
    return network


class Step:
    """An objective with its settings, compiled where that pays and works, else eager: the same numbers."""

    def __init__(self, objective: Objective, settings: dict[str, float], compiled: bool) -> None:
        def eager(network: Network, x: Tensor, targets: Tensor, keep: Tensor) -> Any:
            return objective(network, x, targets, keep, **settings)

        self._eager = eager
        self._compiled = torch.compile(eager, dynamic=False) if compiled else None

    def __call__(self, network: Network, x: Tensor, targets: Tensor, keep: Tensor) -> Any:
        if self._compiled is not None:
            try:
                return self._compiled(network, x, targets, keep)
            except torch._dynamo.exc.TorchDynamoException as error:  # no compiler, no headers, no Triton
                self._compiled = None
                reason = str(error).strip().splitlines()[0]
                tqdm.write(f"torch.compile does not work here ({reason}); training eagerly, which is slower")
        return self._eager(network, x, targets, keep)


@torch.no_grad()
def predict(network: torch.nn.Module, images: npt.NDArray[np.uint8], chunk: int = 1000) -> Tensor:
    """Logits (N, K), on the CPU, of 8-bit images (N, C, H, W)."""
    device = next(network.parameters()).device
    parts = [images[start : start + chunk] for start in range(0, len(images), chunk)]
    return torch.cat([network(torch.from_numpy(to_float(part)).to(device)).cpu() for part in parts])


def _generator(seed: int, model: str, purpose: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{model}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7]))


def _save(path: Path, network: Network, config: dict[str, Any], clean_accuracy: float) -> None:
    """Writes beside `path` and renames, so that whoever is interrupted leaves no half checkpoint."""
    record = {
        "config": config,
        "clean_accuracy": clean_accuracy,
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
    }
    data = safetensors.torch.save(
        {name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()},
        metadata={_METADATA: canonical_json(record).decode()},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink()
        raise


def _restore(path: Path, config: dict[str, Any], device: torch.device) -> Trained:
    """The model in a checkpoint; raises TrainingError if it is damaged or of another configuration."""
    try:
        data = path.read_bytes()
        with safetensors.safe_open(path, framework="pt") as file:
            record = json.loads(file.metadata()[_METADATA])
        if record["config"] != config:
            raise TrainingError(f"{path}: made with another configuration, seed or data")
        channels, height, width = config["image_shape"]
        network = Network((channels, height, width), config["classes"])
        network.load_state_dict(safetensors.torch.load(data))
        accuracy, versions = record["clean_accuracy"], record["versions"]
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, safetensors.SafetensorError) as error:
        if isinstance(error, TrainingError):
            raise
        raise TrainingError(f"{path}: not a readable checkpoint ({str(error).splitlines()[0]})") from None
    network.requires_grad_(False)
    # From here on it is only evaluated, and pooling over channels-last activations is much faster on a CPU.
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Trained(network, config, accuracy, path, hashlib.sha256(data).hexdigest(), versions)
