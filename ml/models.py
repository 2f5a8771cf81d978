"""The network of the study: two convolutions and two dense layers, with batch norm (Ross and Doshi-Velez, 2018)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ml import distributed
from ml.input_gradient import (
    Pullback,
    convolution,
    convolution_by_corners,
    corners_apart,
    normalized,
    signs,
)

# What one batch says of the running averages, in the order of `Network.averages`.
Statistics = list[Tensor]

MOMENTUM = 0.9  # of the running averages, in TensorFlow's sense: new = 0.9 old + 0.1 batch
DROPOUT = 0.5

LEAST_DEVIATION = 1e-4  # below which contrast is not stretched any further


class BatchNorm(nn.Module):
    """Parameters and running averages of batch norm over dimension 1 of (N, C) or (N, C, H, W); `ml.input_gradient`
    has it as training needs it."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def folded(self, layer: nn.Conv2d | nn.Linear) -> tuple[Tensor, Tensor]:
        """Weights and biases of `layer` followed by this norm with its running averages, as one layer."""
        scale = torch.rsqrt(self.running_var + self.epsilon) * self.weight  # (C,)
        return layer.weight * scale.view(
            -1, *[1] * (layer.weight.ndim - 1)
        ), self.bias - self.running_mean * scale


class LocalContrast(nn.Module):
    """Local contrast normalization (Jarrett et al., "What is the Best Multi-Stage Architecture for Object
    Recognition?", 2009) of (N, C, H, W), each channel for itself.

    From each pixel its neighborhood's mean is taken, and the difference is divided by the neighborhood's standard
    deviation or, where that is larger, by the mean of these deviations over the batch, each taken as at least 1e-4.
    Neighborhoods are Gaussian, 7 x 7 with sigma 3, and zero beyond the border. As in batch norm, a running average
    stands for the batch in evaluation: an image is judged alike whichever others are judged with it.
    """

    kernel: Tensor
    running_deviation: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        offsets = torch.arange(7) - 3.0
        bell = torch.exp(-offsets.square() / (2 * 3.0**2))
        kernel = torch.outer(bell, bell)
        self.register_buffer("kernel", (kernel / kernel.sum()).repeat(channels, 1, 1, 1), persistent=False)
        self.register_buffer("running_deviation", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        centered, deviation = self._parts(x)
        return centered / torch.maximum(deviation, self.running_deviation)

    def of_batch(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalizes by the batch's own mean deviation (), and returns this as well."""
        centered, deviation = self._parts(x)
        mean = distributed.average(deviation.mean())
        return centered / torch.maximum(deviation, mean), mean

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        def blurred(x: Tensor) -> Tensor:
            return F.conv2d(x, self.kernel, padding=3, groups=self.channels)

        centered = x - blurred(x)
        # Bounded below before the root, whose gradient at 0 is infinite.
        return centered, blurred(centered.square()).clamp(min=LEAST_DEVIATION**2).sqrt()


class Network(nn.Module):
    """Pixels, float32 (N, C, H, W) in [0, 1], to logits (N, K).

    Calling it evaluates it: running averages, no dropout. `on_batch` is the same network as training needs
    it, a pure function that returns the batch's statistics rather than storing them; `with_pullback` also returns
    what defenses take input gradients with.

    With `contrast_normalized` (SVHN) every image is first brought to mean 0 and sample standard deviation 1
    (`normalize`) and then locally contrast-normalized. Epsilons and gradient penalties are in the units after
    `normalize`, as in the paper; without it these are pixels.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        classes: int = 10,
        contrast_normalized: bool = False,
    ) -> None:
        super().__init__()
        channels, height, width = image_shape
        if height % 4 or width % 4:
            raise ValueError(f"images must be a multiple of 4 pixels high and wide, not {height} x {width}")
        self.image_shape, self.classes, self.hidden = image_shape, classes, 1024
        self.local_contrast = LocalContrast(channels) if contrast_normalized else None
        # Training's own adversarial examples stay within these normalized inputs; set from the training images.
        self.low, self.high = 0.0, 1.0
        # A batch norm has its own shift, so the layers before it need no biases.
        self.conv1 = nn.Conv2d(channels, 32, 5, padding=2, bias=False)
        self.norm1 = BatchNorm(32)
        self.conv2 = nn.Conv2d(32, 64, 5, padding=2, bias=False)
        self.norm2 = BatchNorm(64)
        self.dense1 = nn.Linear(64 * (height // 4) * (width // 4), self.hidden, bias=False)
        self.norm3 = BatchNorm(self.hidden)
        self.dense2 = nn.Linear(self.hidden, classes)

    def initialize(self, generator: torch.Generator) -> None:
        """Glorot-uniform weights (Glorot and Bengio, 2010) drawn from `generator`, zero biases."""
        for layer in (self.conv1, self.conv2, self.dense1, self.dense2):
            nn.init.xavier_uniform_(layer.weight, generator=generator)
        nn.init.zeros_(self.dense2.bias)

    def normalize(self, pixels: Tensor) -> Tensor:
        """The paper's inputs, (N, C, H, W): contrast-normalized images, or the pixels themselves."""
        if self.local_contrast is None:
            return pixels
        return (pixels - pixels.mean((1, 2, 3), keepdim=True)) / self.units(pixels)

    def units(self, pixels: Tensor) -> Tensor:
        """(N, 1, 1, 1), how many pixel units one normalized unit is: 1, or each image's standard deviation."""
        if self.local_contrast is None:
            return torch.ones_like(pixels[:, :1, :1, :1])
        return pixels.var((1, 2, 3), keepdim=True).clamp(min=LEAST_DEVIATION**2).sqrt()

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (N, K) of images (N, C, H, W)."""

        def folded(layer: nn.Conv2d | nn.Linear, norm: BatchNorm, x: Tensor) -> Tensor:
            weight, bias = norm.folded(layer)
            return F.linear(x, weight, bias) if x.ndim == 2 else F.conv2d(x, weight, bias, padding=2)

        x = self.normalize(pixels)
        x = x if self.local_contrast is None else self.local_contrast(x)
        # ReLU and max-pool commute; pooling first leaves ReLU a quarter of the work.
        x = torch.relu(F.max_pool2d(folded(self.conv1, self.norm1, x), 2))  # (N, 32, H/2, W/2)
        x = torch.relu(F.max_pool2d(folded(self.conv2, self.norm2, x), 2))  # (N, 64, H/4, W/4)
        x = torch.relu(folded(self.dense1, self.norm3, x.flatten(1)))  # (N, 1024)
        logits: Tensor = self.dense2(x)  # (N, K)
        return logits

    def on_batch(self, x: Tensor, keep: Tensor) -> tuple[Tensor, Statistics]:
        """Logits (N, K) and batch statistics in training, of `normalize`d images x (N, C, H, W); `keep` (N, 1024)
        is a dropout mask (see below)."""
        logits, statistics, _ = self.with_pullback(x, keep)
        return logits, statistics

    def with_pullback(self, x: Tensor, keep: Tensor) -> tuple[Tensor, Statistics, Pullback]:
        """What `on_batch` returns, and the map from a gradient by the logits (N, K) to that by x (N, C, H, W),
        which can be differentiated once more, by weights and gradient."""
        statistics: Statistics = []
        pullbacks: list[Pullback] = []
        if self.local_contrast is not None:
            of_batch: Any = torch.func.vjp(self.local_contrast.of_batch, x, has_aux=True)
            x, of_contrast, deviation = of_batch
            pullbacks.append(lambda g: of_contrast(g)[0])
            statistics.append(deviation)

        def norm(x: Tensor, norm: BatchNorm, pooled: tuple[int, ...] = ()) -> Tensor:
            x, pullback, moments = normalized(x, norm, pooled)
            pullbacks.append(pullback)
            statistics.extend(moments)
            return x

        x, of_corners = convolution_by_corners(x, self.conv1.weight * signs(self.norm1).view(-1, 1, 1, 1))
        pullbacks.append(of_corners)
        x = norm(x, self.norm1, pooled=(3, 4)).squeeze((3, 4))  # (N, H/2, W/2, 32)

        x, of_pixels = convolution(x, self.conv2.weight * signs(self.norm2).view(-1, 1, 1, 1))
        shape = x.shape
        pullbacks += [of_pixels, lambda g: g.view(shape)]
        x = norm(corners_apart(x), self.norm2, pooled=(2, 4)).flatten(1)  # (N, H/4 * W/4 * 64)

        # Its weights have channels before places.
        dense1 = self.dense1.weight.view(self.hidden, 64, -1).mT.flatten(1)  # (1024, H/4 * W/4 * 64)
        pullbacks.append(lambda g: g @ dense1)
        x = norm(F.linear(x, dense1), self.norm3) * keep  # (N, 1024)

        pullbacks.append(lambda g: g @ self.dense2.weight * keep)
        logits: Tensor = self.dense2(x)  # (N, K)

        def pullback(g: Tensor) -> Tensor:
            for layer in reversed(pullbacks):
                g = layer(g)
            return g

        return logits, statistics, pullback

    def dropout_mask(self, n: int, generator: torch.Generator) -> Tensor:
        """(N, 1024) on the CPU: 0 where a unit is dropped, else 1 / (1 - rate)."""
        return (torch.rand(n, self.hidden, generator=generator) >= DROPOUT).float() / (1 - DROPOUT)

    @property
    def averages(self) -> Statistics:
        """The running averages, first layer first: mean and variance of every batch norm's input."""
        running = [] if self.local_contrast is None else [self.local_contrast.running_deviation]
        for norm in (self.norm1, self.norm2, self.norm3):
            running += [norm.running_mean, norm.running_var]
        return running

    @torch.no_grad()
    def update_averages(self, statistics: Statistics) -> None:
        """Moves the running averages towards one batch's statistics."""
        for running, of_batch in zip(self.averages, statistics, strict=True):
            running.lerp_(of_batch, 1 - MOMENTUM)
