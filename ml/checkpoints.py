"""Checkpoints: a network's weights with the configuration that made them, and trainings that are not finished.

Both are safetensors files, which cannot run code when they are read.
"""

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ml.models import Network
from ml.pack import canonical_json

_METADATA = "reasonable_mistakes"  # one key, because safetensors does not keep an order among several
_CHECKSUM = "weights_sha256"


class CheckpointError(RuntimeError):
    """A checkpoint is damaged or of another configuration; the message is one line."""


@dataclass(frozen=True)
class Trained:
    """A network with the checkpoint that holds it. `config` identifies it; `clean_accuracy` is in [0, 1]; `checked`
    says whether the weights were compared with their own checksum, which older checkpoints do not have."""

    network: Network
    config: dict[str, Any]
    clean_accuracy: float
    checkpoint: Path
    checkpoint_sha256: str
    versions: dict[str, str]
    checked: bool


def path_of(checkpoints: Path, config: dict[str, Any]) -> Path:
    """Where the model of this configuration lies: `<dataset>/<model>-<identity>.safetensors`."""
    identity = hashlib.sha256(canonical_json(config)).hexdigest()[:12]
    dataset: str = config["dataset"]
    return checkpoints / dataset / f"{config['model']}-{identity}.safetensors"


def fresh_network(config: dict[str, Any]) -> Network:
    """The untrained network of a configuration. Raises ValueError for images of a size that it cannot have."""
    channels, height, width = config["image_shape"]
    if not height or not width:
        raise ValueError(f"images must have pixels, not {height} x {width}")
    return Network((channels, height, width), config["classes"], config.get("contrast_normalized", False))


def save(path: Path, network: Network, config: dict[str, Any], clean_accuracy: float) -> None:
    """Writes beside `path` and renames, so that whoever is interrupted leaves no half checkpoint."""
    record = {
        "config": config,
        "clean_accuracy": clean_accuracy,
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
    }
    _write(path, dict(network.state_dict()), record)


def load(path: Path, device: torch.device | str = "cpu", config: dict[str, Any] | None = None) -> Trained:
    """The model in a checkpoint, to be evaluated on `device`.

    Raises CheckpointError if the file is damaged, or of another configuration than `config`.
    """
    tensors, record, sha256 = _read(path)
    if config is not None and record.get("config") != config:
        raise CheckpointError(f"{path}: made with another configuration, seed or data")
    try:
        network = fresh_network(record["config"])
        network.load_state_dict(tensors)
        accuracy, versions = float(record["clean_accuracy"]), record["versions"]
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise _unreadable(path, error) from None
    network.requires_grad_(False)
    # From here on it is only evaluated, and pooling over channels-last activations is much faster on a CPU.
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Trained(network, record["config"], accuracy, path, sha256, versions, _CHECKSUM in record)


def save_progress(
    path: Path, network: Network, optimizer: torch.optim.Optimizer, config: dict[str, Any], steps: int
) -> None:
    """Keeps a training that has made `steps` steps, beside the checkpoint that it will write to `path`."""
    tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in state.items()}
    record = {"config": config, "steps": steps, "threads": torch.get_num_threads()}
    _write(progress_path(path), tensors, record)


def restore_progress(
    path: Path, network: Network, optimizer: torch.optim.Optimizer, config: dict[str, Any]
) -> int:
    """Brings network and optimizer to where a training towards `path` was; returns the steps it had made.

    0, and nothing changed, where there is none. Raises CheckpointError as `load` does.
    """
    partial = progress_path(path)
    if not partial.exists():
        return 0
    tensors, record, _ = _read(partial)
    if record.get("config") != config:
        raise CheckpointError(f"{partial}: made with another configuration, seed or data")
    state: dict[int, dict[str, Tensor]] = {}
    weights = {}
    try:
        for key, tensor in tensors.items():
            kind, _, name = key.partition(".")
            if kind == "network":
                weights[name] = tensor
            else:
                index, _, name = name.partition(".")
                state.setdefault(int(index), {})[name] = tensor
        steps = int(record["steps"])
        shapes = [parameter.shape for parameter in network.parameters()]
        if [state[index]["exp_avg"].shape for index in range(len(shapes))] != shapes:
            raise ValueError("the optimizer's averages have other shapes than the network")
        network.load_state_dict(weights)
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise _unreadable(partial, error) from None
    return steps


def progress_path(path: Path) -> Path:
    """Where the unfinished training of the checkpoint `path` is kept."""
    return path.with_name(f"{path.stem}.unfinished")


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return CheckpointError(f"{path}: not a readable checkpoint ({reason})")


def _write(path: Path, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    record = record | {_CHECKSUM: _checksum(tensors)}
    data = safetensors.torch.save(tensors, metadata={_METADATA: canonical_json(record).decode()})
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


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """Tensors, record and sha256 of a file."""
    try:
        data = path.read_bytes()
        with safetensors.safe_open(path, framework="pt") as file:
            record = json.loads(file.metadata()[_METADATA])
        if not isinstance(record, dict):
            raise TypeError("its record is not an object")
        tensors = safetensors.torch.load(data)
        if record.get(_CHECKSUM) not in (None, _checksum(tensors)):
            raise ValueError("its weights are not those that were saved")
        return tensors, record, hashlib.sha256(data).hexdigest()
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, safetensors.SafetensorError) as error:
        raise _unreadable(path, error) from None


def _checksum(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}\n".encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()
