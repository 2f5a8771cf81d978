"""The layers of training, each with its pullback: from the gradient by its output, the gradient by its input.

A penalty on the input gradient is differentiated once more. Here that gradient is written out in operations whose
own backward is fast, so that one ordinary backward pass is enough: PyTorch's double backward of a convolution would
take a convolution with kernels as large as images, and that of batch norm many passes over its input.

Units are the last dimension of every tensor here, (N, H, W, C) or (N, C): vector instructions then work on channels
at once. For the same reason masks are floating-point factors: `torch.compile` stores booleans one at a time.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ml import distributed

Pullback = Callable[[Tensor], Tensor]


class Norm(Protocol):
    """A batch norm's parameters (C,)."""

    epsilon: float

    @property
    def weight(self) -> Tensor: ...
    @property
    def bias(self) -> Tensor: ...


def convolution(x: Tensor, weight: Tensor) -> tuple[Tensor, Pullback]:
    """(N, H, W, C) to (N, H, W, D) by weights (D, C, k, k), k odd, with zeros beyond the border."""
    padding = weight.shape[-1] // 2

    def pullback(g: Tensor) -> Tensor:
        return F.conv_transpose2d(g.permute(0, 3, 1, 2), weight, padding=padding).permute(0, 2, 3, 1)

    return F.conv2d(x.permute(0, 3, 1, 2), weight, padding=padding).permute(0, 2, 3, 1), pullback


def convolution_by_corners(x: Tensor, weight: Tensor) -> tuple[Tensor, Pullback]:
    """Images (N, C, H, W) to (N, H/2, W/2, 2, 2, D): the convolution by weights (D, C, 5, 5) at the four corners of
    each 2 x 2 block of pixels.

    It is a convolution of blocks by 3 x 3 blocks, with the weights once for each corner: with few channels C far
    faster than one of pixels, whose inner products are short.
    """
    shifted = [F.pad(weight, (right, 1 - right, down, 1 - down)) for down in (0, 1) for right in (0, 1)]
    blocks = F.pixel_unshuffle(x, 2).permute(0, 2, 3, 1).contiguous()
    y, of_blocks = convolution(blocks, F.pixel_unshuffle(torch.cat(shifted), 2))

    def pullback(g: Tensor) -> Tensor:
        return F.pixel_shuffle(of_blocks(g.view(y.shape)).permute(0, 3, 1, 2), 2)

    return y.view(*y.shape[:3], 2, 2, len(weight)), pullback


def corners_apart(x: Tensor) -> Tensor:
    """(N, H, W, C) as (N, H/2, 2, W/2, 2, C)."""
    n, height, width, channels = x.shape
    return x.view(n, height // 2, 2, width // 2, 2, channels)


def signs(norm: Norm) -> Tensor:
    """(C,), -1 where the scale of `norm` is negative, else 1: for the weights before a norm that is pooled.

    The layer's outputs and the scale then both change sign, which changes nothing else, and the maximum can be
    taken before the norm.
    """
    return 1 - 2 * (norm.weight.detach() < 0).to(norm.weight.dtype)


def normalized(
    x: Tensor, norm: Norm, pooled: tuple[int, ...] = ()
) -> tuple[Tensor, Pullback, tuple[Tensor, Tensor]]:
    """Batch norm of x (..., C), the maximum over the dimensions `pooled` (two of size 2, which get size 1), and
    ReLU; also the batch's mean and variance (C,). With `pooled`, x is to come from weights times `signs(norm)`.
    """
    unit, mean, variance, scale, place = _Standardized.apply(x, norm.epsilon, pooled)  # type: ignore[no-untyped-call]
    weight = norm.weight.abs() if pooled else norm.weight
    y = unit * weight + norm.bias
    on = torch.relu(y.detach()).sign()

    def pullback(g: Tensor) -> Tensor:
        of_unit = g.view(y.shape) * on * weight
        of_x: Tensor = _PulledBack.apply(of_unit, x, unit, mean, scale, place, pooled)  # type: ignore[no-untyped-call]
        return of_x

    return y * on, pullback, (mean * signs(norm) if pooled else mean, variance)


class _Standardized(torch.autograd.Function):
    """x (..., C) brought to mean 0 and variance 1, at its maximum over the dimensions `pooled`; mean, variance and
    1 / standard deviation (C,); and which of the four is the maximum (the first of them), None without pooling."""

    @staticmethod
    def forward(x: Tensor, epsilon: float, pooled: tuple[int, ...]) -> Any:
        dims = list(range(x.ndim - 1))
        mean = distributed.average(x.mean(dims))
        variance = distributed.average((x - mean).square().mean(dims))
        # The compiler keeps what exp gives, but would take rsqrt anew for each element of x.
        scale = torch.exp(-0.5 * torch.log(variance + epsilon))
        if not pooled:
            return (x - mean) * scale, mean, variance, scale, None
        most = x.amax(pooled, keepdim=True)
        place = torch.where(x < most, 4.0, _places(x, pooled)).amin(pooled, keepdim=True)
        return (most - mean) * scale, mean, variance, scale, place

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, _, ctx.pooled = inputs
        unit, mean, variance, scale, place = output
        ctx.mark_non_differentiable(*(t for t in (mean, variance, scale, place) if t is not None))
        ctx.save_for_backward(x, unit, mean, scale, place)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _PulledBack.apply(gradients[0], *ctx.saved_tensors, ctx.pooled), None, None  # type: ignore[no-untyped-call]


class _PulledBack(torch.autograd.Function):
    """The gradient g by the output of `_Standardized`, pulled back to x: with z the standardized x, s the scale, S
    the map that puts each element of g at its maximum and 0 elsewhere, and <> means over all but the units,

        s (S g - <S g> - z <z S g>).

    For a gradient v by this, `backward` gives that by g, with S' the transpose of S,

        s S' (v - <v> - z <z v>),

    and, as z and s depend on x (each dz = s (dx - <dx> - z <z dx>), ds = -s^2 <z dx>), that by x,

        -s^2 (<z Sg> (v - <v>) + <z v> (S g - <S g>) + (<v S g> - <v> <S g> - 3 <z v> <z S g>) z).
    """

    @staticmethod
    def forward(
        g: Tensor,
        x: Tensor,
        unit: Tensor,
        mean: Tensor,
        scale: Tensor,
        place: Tensor | None,
        pooled: tuple[int, ...],
    ) -> Tensor:
        mean_g, mean_zg = _mean(g, x), _mean(g * unit, x)
        return scale * (_one_hot(place, pooled) * g - mean_g - (x - mean) * scale * mean_zg)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *tensors, ctx.pooled = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        g, x, unit, mean, scale, place = ctx.saved_tensors
        (v,) = gradients
        z = (x - mean) * scale
        one_hot = _one_hot(place, ctx.pooled)
        v_there = (one_hot * v).sum(ctx.pooled, keepdim=True) if ctx.pooled else v
        mean_g, mean_zg = _mean(g, x), _mean(g * unit, x)
        mean_v, mean_zv = _mean(v, x), _mean(v * z, x)
        mean_vg = _mean(v_there * g, x)
        of_z = mean_vg - mean_v * mean_g - 3 * mean_zv * mean_zg
        of_g = scale * (v_there - mean_v - unit * mean_zv)
        of_x = -scale.square() * (mean_zg * (v - mean_v) + mean_zv * (one_hot * g - mean_g) + of_z * z)
        return of_g, of_x, None, None, None, None, None


def _mean(values: Tensor, x: Tensor) -> Tensor:
    """(C,), the sum over all but the units, by how many elements x has of each."""
    return distributed.average(values.sum(list(range(values.ndim - 1))) * (x.shape[-1] / x.numel()))


def _places(x: Tensor, pooled: tuple[int, ...]) -> Tensor:
    """0 to 3 along the dimensions `pooled`, in the order of rows."""
    shape = [2 if i in pooled else 1 for i in range(x.ndim)]
    return torch.arange(4, device=x.device, dtype=x.dtype).view(shape)


def _one_hot(place: Tensor | None, pooled: tuple[int, ...]) -> Tensor | float:
    """1 at the maximum, else 0."""
    return 1.0 if place is None else torch.relu(1 - (place - _places(place, pooled)).abs())
