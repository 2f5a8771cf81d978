"""A researcher's own classifiers: any PyTorch module from pixels (N, C, H, W) in [0, 1] to logits (N, K)."""

import hashlib
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from torch import nn

from ml import attacks, train
from ml.datasets import Dataset, to_float


class OwnModelError(Exception):
    """A model cannot be used; the message is one line that names it and says why."""


@dataclass(frozen=True)
class OwnModel:
    """A model as `--model` names it. `weights_sha256` is None where it came without a file of weights."""

    name: str
    network: nn.Module
    source: str  # module:function
    weights: str | None  # the file's name
    weights_sha256: str | None


def load(specification: str, device: torch.device) -> OwnModel:
    """The model of `NAME=module:function[,weights]`.

    `function` is called without arguments and gives the module; a module itself may stand there too. `weights` is a
    file with its state dict, written by safetensors or by torch.save (read so that it cannot run code). Raises
    OwnModelError.
    """
    name, _, rest = specification.partition("=")
    source, _, weights = rest.partition(",")
    module_name, _, function_name = source.partition(":")
    if not name or not module_name or not function_name:
        raise OwnModelError(
            f"--model {specification}: expected NAME=module:function or NAME=module:function,WEIGHTS"
        )
    try:
        found = getattr(importlib.import_module(module_name), function_name)
        network = found if isinstance(found, nn.Module) else found()
    except Exception as error:  # somebody else's code may raise anything
        raise OwnModelError(f"{name}: {source} cannot be made ({_reason(error)})") from None
    if not isinstance(network, nn.Module):
        raise OwnModelError(f"{name}: {source} gives a {type(network).__name__}, not a torch.nn.Module")
    digest = _load_weights(name, network, Path(weights)) if weights else None
    network.eval().requires_grad_(False).to(device)
    return OwnModel(name, network, source, Path(weights).name if weights else None, digest)


def check(model: OwnModel, dataset: Dataset) -> npt.NDArray[np.int64]:
    """The model's labels (N,) for all test images.

    Raises OwnModelError unless it gives finite logits of the right shape for them, and can be differentiated with
    respect to them.
    """
    shape, classes = dataset.test_images.shape[1:], len(dataset.labels)
    images = dataset.test_images[:2]
    labels = torch.zeros(len(images), dtype=torch.int64, device=train.device_of(model.network))
    try:
        with torch.no_grad():
            logits: Any = model.network(torch.from_numpy(to_float(images)).to(labels.device))
    except Exception as error:
        raise OwnModelError(f"{model.name}: cannot read images of shape {shape} ({_reason(error)})") from None
    if not isinstance(logits, torch.Tensor) or not logits.is_floating_point():
        raise OwnModelError(f"{model.name}: gives no floating-point tensor of logits")
    if logits.shape != (len(images), classes):
        raise OwnModelError(
            f"{model.name}: gives {tuple(logits.shape)} for {len(images)} images; the data set's {classes} labels "
            f"need ({len(images)}, {classes})"
        )
    everywhere = train.predict(model.network, dataset.test_images)
    if not everywhere.isfinite().all():
        worst = int((~everywhere.isfinite().all(1)).nonzero()[0])
        raise OwnModelError(f"{model.name}: gives logits that are not finite, first for test image {worst}")
    try:
        x = torch.from_numpy(to_float(images)).to(labels.device)
        gradient = attacks.loss_gradient(model.network, x, labels)
    except Exception as error:
        raise OwnModelError(
            f"{model.name}: cannot be differentiated with respect to its input ({_reason(error)})"
        ) from None
    if not gradient.isfinite().all():
        raise OwnModelError(f"{model.name}: has gradients with respect to its input that are not finite")
    return np.asarray(everywhere.argmax(1).numpy())


def _load_weights(name: str, network: nn.Module, path: Path) -> str:
    try:
        data = path.read_bytes()
        if path.suffix == ".safetensors":
            state = safetensors.torch.load(data)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(state)
    except Exception as error:
        raise OwnModelError(f"{name}: {path}: no weights for this model ({_reason(error)})") from None
    return hashlib.sha256(data).hexdigest()


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(line.strip() for line in lines[:2])[:300]
