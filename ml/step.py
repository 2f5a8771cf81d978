"""A step of training: compiled where asked and possible, its products rounded where asked and possible."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ml.defenses import Objective
from ml.models import Network


class Step:
    """An objective with its settings, compiled where that pays and works, else eager: the same numbers."""

    def __init__(self, objective: Objective, settings: dict[str, float], compiled: bool) -> None:
        # All steps of a process are one function to PyTorch, which would compile only eight variants of it.
        torch._dynamo.config.recompile_limit = 1000

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


@contextmanager
def products_in(precision: str | None) -> Iterator[None]:
    """Within, convolutions and products of matrices on the CPU round their factors to `precision`, where it can
    multiply such numbers; sums and all else stay float32, and so do the products that give weights their gradients
    in convolutions. None changes nothing."""
    kinds = [getattr(torch.backends.mkldnn, kind) for kind in ("conv", "matmul") if precision]
    before = [kind.fp32_precision for kind in kinds]
    try:
        for kind in kinds:
            kind.fp32_precision = {"bfloat16": "bf16"}[str(precision)]
        yield
    finally:
        for kind, value in zip(kinds, before, strict=True):
            kind.fp32_precision = value


def products_rounded(precision: str) -> bool:
    """Whether the CPU does what `products_in` asks for; others compute in float32 all the same."""
    with products_in(precision):
        factor = torch.full((256, 256), 1 + 2**-12)
        return bool((factor @ torch.ones(256, 256) == 256).all())
