"""Several processes, on one machine or many, under `torchrun`; without it everything here is trivial.

Training is data-parallel: every process computes its slice of each batch, and what couples the images of a batch
(the statistics of batch norm, sums of losses, gradients of the weights) is summed over the processes. As that sum
is differentiated too, any number of times, the processes together compute what one process alone would, up to
rounding.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@contextmanager
def started() -> Iterator[None]:
    """Joins the processes that `torchrun` started for as long as the block runs; NCCL between GPUs, else gloo."""
    if "WORLD_SIZE" not in os.environ or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def processes() -> int:
    """How many processes work together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def first() -> bool:
    """Whether this is the process that writes files and talks to the user."""
    return rank() == 0


class _Sum(torch.autograd.Function):
    """The sum over processes. Each process's output depends on every process's input, so that the gradient of
    the sum of all processes' losses is again a sum over processes."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept: the function is linear."""

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _Sum.apply(gradients[0])  # type: ignore[no-untyped-call]


def average(x: Tensor) -> Tensor:
    """The mean of x over the processes, differentiable any number of times."""
    if processes() == 1:
        return x
    total: Tensor = _Sum.apply(x)  # type: ignore[no-untyped-call]
    return total / processes()


def add_up(tensors: list[Tensor]) -> None:
    """Replaces each tensor by its sum over the processes, in place; no gradient."""
    if processes() > 1:
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        totals = torch.split(flat, [tensor.numel() for tensor in tensors])
        for tensor, total in zip(tensors, totals, strict=True):
            tensor.copy_(total.view_as(tensor))


def mine(x: Tensor) -> Tensor:
    """This process's equal slice of a batch (N, ...); N must be a multiple of `processes()`."""
    share = len(x) // processes()
    return x[rank() * share : (rank() + 1) * share]


def everyones(value: object) -> list[Any]:
    """Every process's value, in the order of their ranks, on each of them."""
    if processes() == 1:
        return [value]
    values: list[Any] = [None] * processes()
    dist.all_gather_object(values, value)
    return values


def wait() -> None:
    """Until every process has come this far."""
    if processes() > 1:
        dist.barrier()
