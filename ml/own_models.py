"""A researcher's own classifiers: any PyTorch module from pixels (N, C, H, W) in [0, 1] to logits (N, K)."""

import hashlib
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from ml import attacks, train
from ml.datasets import Dataset, to_float

ASKED_AGAIN = 200  # test images that a model is asked about a second time
ROUNDING = 1e-4  # of the largest logit, by which answers may differ from one batch to another
DIFFERENTIATED = 16  # test images


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
    except (Exception, SystemExit) as error:  # somebody else's code may raise anything
        raise OwnModelError(f"{name}: {source} cannot be made ({_reason(error)})") from None
    if not isinstance(network, nn.Module):
        raise OwnModelError(f"{name}: {source} gives a {type(network).__name__}, not a torch.nn.Module")
    digest = _load_weights(name, network, Path(weights)) if weights else None
    try:
        network.eval()
        network.requires_grad_(False)
        network.to(device)
    except (Exception, SystemExit) as error:
        raise OwnModelError(f"{name}: cannot be evaluated on {device} ({_reason(error)})") from None
    return OwnModel(name, network, _printable(source), _printable(Path(weights).name) or None, digest)


class Guarded(nn.Module):
    """A model that raises OwnModelError, with its name in it, where it misbehaves on whichever images.

    Calling it gives what the model does, finite logits (N, classes), which can be differentiated once with respect
    to the pixels. The model gets a copy of these, and what it gives is copied: it may overwrite both. `images` says
    in messages which images are meant. Without `finite`, any logits may be.
    """

    def __init__(
        self, name: str, network: nn.Module, classes: int, images: str = "images", finite: bool = True
    ) -> None:
        super().__init__()
        self.name, self.network, self.classes = name, network, classes
        self.images, self.finite = images, finite

    def forward(self, x: Tensor) -> Tensor:
        differentiated = x.requires_grad and torch.is_grad_enabled()
        copy = x.detach().clone().requires_grad_(differentiated)
        try:
            logits: Any = self.network(copy)
            fault = self._fault(logits, x)
        except (Exception, SystemExit) as error:
            raise OwnModelError(
                f"{self.name}: cannot read {self.images} of shape {tuple(x.shape[1:])} ({_reason(error)})"
            ) from None
        if fault is None and differentiated and not logits.requires_grad:
            fault = "cannot be differentiated with respect to its input (its logits are detached from it)"
        if fault is not None:
            raise OwnModelError(f"{self.name}: {fault}")
        if not differentiated:
            return torch.clone(logits)
        differentiable: Tensor = _Differentiable.apply(x, self.name, (logits, copy))  # type: ignore[no-untyped-call]
        return differentiable

    def _fault(self, logits: Any, x: Tensor) -> str | None:
        if not isinstance(logits, Tensor) or not logits.is_floating_point():
            return "gives no floating-point tensor of logits"
        if logits.shape != (len(x), self.classes):
            return (
                f"gives {tuple(logits.shape)} for {len(x)} {self.images}; the data set's {self.classes} labels "
                f"need ({len(x)}, {self.classes})"
            )
        if logits.device != x.device:
            return f"gives logits on {logits.device} for {self.images} on {x.device}"
        if self.finite and not logits.isfinite().all():
            return f"gives logits that are not finite for {self.images}"
        return None


class _Differentiable(torch.autograd.Function):
    """Logits as a function of the pixels x, by a graph of their own: what fails in it has the model's name."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, name: str, graph: tuple[Tensor, Tensor]) -> Tensor:
        ctx.name = name
        ctx.save_for_backward(*graph)  # logits and what they were made of; freed as those of any other layer
        return graph[0].detach().clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        logits, copy = ctx.saved_tensors
        try:
            (gradient,) = torch.autograd.grad(logits, copy, gradients[0], retain_graph=True)
        except (Exception, SystemExit) as error:
            raise OwnModelError(
                f"{ctx.name}: cannot be differentiated with respect to its input ({_reason(error)})"
            ) from None
        if not gradient.isfinite().all():
            raise OwnModelError(f"{ctx.name}: has gradients with respect to its input that are not finite")
        return gradient, None, None


def check(model: OwnModel, dataset: Dataset) -> Tensor:
    """The model's logits (N, K) for all test images.

    Raises OwnModelError unless it gives finite logits of the right shape for them, the same ones when asked about
    some again in other batches, and can be differentiated with respect to them.
    """
    network = Guarded(model.name, model.network, len(dataset.labels), finite=False)
    train.predict(network, dataset.test_images[:2])  # says at once what is wrong with most
    logits = train.predict(network, dataset.test_images)
    if not logits.isfinite().all():
        worst = int((~logits.isfinite().all(1)).nonzero()[0])
        raise OwnModelError(f"{model.name}: gives logits that are not finite, first for test image {worst}")
    ask_again(model.name, network, dataset, logits)
    x = torch.from_numpy(to_float(dataset.test_images[:DIFFERENTIATED])).to(train.device_of(network))
    attacks.loss_gradient(network, x, torch.zeros(len(x), dtype=torch.int64, device=x.device))
    return logits


def ask_again(name: str, network: nn.Module, dataset: Dataset, logits: Tensor) -> None:
    """Raises OwnModelError unless the model gives some of these logits (N, K), those of all test images, again: in
    another order and other batches."""
    chosen = np.random.default_rng(0).permutation(len(logits))[:ASKED_AGAIN]
    batches = np.split(chosen, [size - 1 for size in (2, 4, 8, 16, 32, 64) if size - 1 < len(chosen)])
    again = torch.cat([train.predict(network, dataset.test_images[batch]) for batch in batches]).double()
    before = logits[torch.from_numpy(chosen)].double()
    difference, largest = (again - before).abs().max().item(), before.abs().max().item()
    allowed = max(ROUNDING, 2 * torch.finfo(logits.dtype).eps)
    if not difference <= allowed * largest:
        raise OwnModelError(
            f"{name}: gives other logits for the same images in another order and other batches (by "
            f"{difference:.3g}, where rounding may make {allowed:.1g} of the largest, {largest:.3g}); its answer "
            f"must follow from the image alone, without dropout, a counter or the batch's statistics"
        )


def _load_weights(name: str, network: nn.Module, path: Path) -> str:
    try:
        data = path.read_bytes()
        if path.suffix == ".safetensors":
            state = safetensors.torch.load(data)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(state)
    except (Exception, SystemExit) as error:
        raise OwnModelError(f"{name}: {path}: no weights for this model ({_reason(error)})") from None
    return hashlib.sha256(data).hexdigest()


def _reason(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"it calls sys.exit({error.code!r})"[:300]
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(line.strip() for line in lines[:2])[:300]


def _printable(text: str) -> str:
    """What a manifest can hold: bytes of a file's name that are not UTF-8 as they would be escaped."""
    return text.encode(errors="backslashreplace").decode()
