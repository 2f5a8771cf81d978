"""The input path of SVHN against NumPy and SciPy, and everything that steps in its normalized units.

The oracles follow the paper's words: per image, subtract the mean and divide by the sample standard deviation; then
local contrast normalization, subtractive then divisive, with a Gaussian window of 7 x 7 and sigma 3.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from scipy import signal
from torch import Tensor

from ml import attacks, defenses, pairs, sweep, train
from ml.checkpoints import Trained
from ml.datasets import Dataset
from ml.models import LocalContrast, Network

Array = npt.NDArray[np.float64]

CPU = torch.device("cpu")


def standardized(pixels: Array) -> Array:
    """Images (N, C, H, W) less their mean, divided by their sample standard deviation."""
    return np.stack([(image - image.mean()) / image.std(ddof=1) for image in pixels])


def local_parts(x: Array) -> tuple[Array, Array]:
    """What the subtractive half leaves of x (N, C, H, W), and the local standard deviation of that."""
    bell = signal.windows.gaussian(7, 3)
    window = np.outer(bell, bell) / bell.sum() ** 2

    def blurred(planes: Array) -> Array:
        flat = planes.reshape(-1, *planes.shape[2:])
        return np.stack([signal.convolve2d(plane, window, mode="same") for plane in flat]).reshape(
            planes.shape
        )

    centered = x - blurred(x)
    return centered, np.sqrt(blurred(centered**2))


def locally_normalized(x: Array, mean_deviation: float) -> Array:
    centered, deviation = local_parts(x)
    return centered / np.maximum(np.maximum(deviation, mean_deviation), 1e-4)


def uneven(n: int = 5, channels: int = 1, side: int = 12) -> Array:
    """Images (N, C, H, W) in [0, 1] whose contrast differs from image to image and from left to right."""
    noise = np.random.default_rng(0).random((n, channels, side, side)) - 0.5
    of_image = np.linspace(0.1, 0.9, n)[:, None, None, None]
    return 0.5 + noise * of_image * np.linspace(0.2, 1, side)


def contrast_network(seed: int = 0, side: int = 8) -> Network:
    """An untrained network of contrast-normalized images, with running averages other than at first."""
    network = Network((1, side, side), 10, contrast_normalized=True)
    network.initialize(torch.Generator().manual_seed(seed))
    assert network.local_contrast is not None
    network.local_contrast.running_deviation.fill_(0.6)
    return network.requires_grad_(False)


def test_each_image_is_brought_to_mean_0_and_sample_deviation_1() -> None:
    network, pixels = contrast_network(), uneven()
    found = network.normalize(torch.from_numpy(pixels)).numpy()
    assert found == pytest.approx(standardized(pixels))
    assert found.mean((1, 2, 3)) == pytest.approx(np.zeros(5), abs=1e-12)
    assert found.std((1, 2, 3), ddof=1) == pytest.approx(np.ones(5))
    units = network.units(torch.from_numpy(pixels))
    assert units.shape == (5, 1, 1, 1)
    assert units.flatten().numpy() == pytest.approx(pixels.std((1, 2, 3), ddof=1))


def test_an_image_without_contrast_is_all_zeros() -> None:
    network, flat = contrast_network(), torch.full((2, 1, 8, 8), 0.25)
    assert torch.equal(network.normalize(flat), torch.zeros(2, 1, 8, 8))
    assert network(flat).isfinite().all()


def test_without_contrast_normalization_inputs_are_the_pixels() -> None:
    network, pixels = Network((1, 12, 12)), torch.from_numpy(uneven())
    assert torch.equal(network.normalize(pixels), pixels)
    assert torch.equal(network.units(pixels), torch.ones(5, 1, 1, 1).double())


def test_local_contrast_of_a_batch_divides_by_its_mean_deviation_at_least() -> None:
    x = standardized(uneven(channels=2))
    _, deviation = local_parts(x)
    assert 0.2 < (deviation > deviation.mean()).mean() < 0.8  # either is the larger somewhere
    found, mean = LocalContrast(2).double().of_batch(torch.from_numpy(x))
    assert float(mean) == pytest.approx(deviation.mean(), rel=1e-6)
    assert found.numpy() == pytest.approx(locally_normalized(x, deviation.mean()), rel=1e-5, abs=1e-6)


def test_local_contrast_in_evaluation_divides_by_the_running_deviation_at_least() -> None:
    x = standardized(uneven(channels=2))
    layer = LocalContrast(2).double()
    for running in (0.5, 1.0):
        layer.running_deviation.fill_(running)
        assert 0.1 < (local_parts(x)[1] > running).mean() < 0.9
        assert layer(torch.from_numpy(x)).numpy() == pytest.approx(
            locally_normalized(x, running), rel=1e-5, abs=1e-6
        )


def test_faint_contrast_is_stretched_ten_thousandfold_and_no_more() -> None:
    x = 1e-6 * standardized(uneven())
    layer = LocalContrast(1).double()
    layer.running_deviation.fill_(1e-6)
    expected = local_parts(x)[0] / 1e-4
    assert layer(torch.from_numpy(x)).numpy() == pytest.approx(expected, rel=1e-5, abs=1e-8)
    assert layer.of_batch(torch.from_numpy(x))[0].numpy() == pytest.approx(expected, rel=1e-5, abs=1e-8)


def test_the_network_sees_both_normalizations_in_evaluation_and_in_training() -> None:
    network, pixels = contrast_network(side=12).double(), uneven()
    behind = Network((1, 12, 12)).double().requires_grad_(False)  # what follows them
    behind.load_state_dict({k: v for k, v in network.state_dict().items() if "contrast" not in k})
    x = standardized(pixels)

    evaluated = torch.from_numpy(locally_normalized(x, 0.6))
    assert torch.allclose(network(torch.from_numpy(pixels)), behind(evaluated), rtol=1e-4, atol=1e-5)

    keep = network.dropout_mask(5, torch.Generator().manual_seed(1)).double()
    mean = local_parts(x)[1].mean()
    logits, statistics = network.on_batch(network.normalize(torch.from_numpy(pixels)), keep)
    expected, following = behind.on_batch(torch.from_numpy(locally_normalized(x, mean)), keep)
    assert torch.allclose(logits, expected, rtol=1e-4, atol=1e-5)
    assert len(statistics) == 1 + len(following)
    network.update_averages(statistics)
    assert network.local_contrast is not None
    assert float(network.local_contrast.running_deviation) == pytest.approx(0.9 * 0.6 + 0.1 * mean, rel=1e-6)


def test_training_is_given_standardized_images_and_their_range(small_digits: Dataset) -> None:
    images = np.rint(uneven(side=8) * 255).astype(np.uint8)
    data = replace(small_digits, train_images=images, train_labels=np.arange(5), contrast_normalized=True)
    given: list[Tensor] = []

    def recorded(network: Network, x: Tensor, targets: Tensor, keep: Tensor) -> defenses.Trial:
        given.append(x)
        return defenses.plain(network, x, targets, keep)

    labels = torch.arange(5)
    config = train.configuration("undefended", data, train.Schedule(epochs=1, batch=5), 0)
    network = train.fit(config, recorded, images, labels, F.one_hot(labels, 10).float(), CPU)
    (x,) = given
    expected = standardized(images / 255.0)
    assert np.sort(x.numpy(), axis=None) == pytest.approx(np.sort(expected, axis=None), abs=1e-4)
    assert (network.low, network.high) == pytest.approx((expected.min(), expected.max()), abs=1e-4)
    assert network.local_contrast is not None


def deviations(images: Tensor) -> Tensor:
    """(N, 1, 1, 1), each image's sample standard deviation, which is its unit."""
    return torch.stack([image.std() for image in images]).view(-1, 1, 1, 1)


def stepped_by_hand(network: Network, images: Tensor, labels: Tensor, steps: int, epsilon: float) -> Tensor:
    """Iterated TGSM towards the labels, epsilon times each image's own standard deviation a step."""
    change = epsilon * deviations(images)
    x = images
    for _ in range(steps):
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(network(x), labels), x)
        x = (x.detach() - change * gradient.sign()).clamp(0, 1)
    return x


def test_iterated_tgsm_steps_in_each_image_s_own_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attacks, "CHUNK", 2)  # the units are split as the images are
    network, images = contrast_network().double(), torch.from_numpy(uneven(side=8))
    targets = torch.arange(5)
    found = attacks.iterated_tgsm(network, images, targets, steps=3, epsilon=0.4, units=deviations(images))
    assert torch.allclose(found.images, stepped_by_hand(network, images, targets, 3, 0.4))
    farthest = (found.images - images).abs().amax((1, 2, 3))
    assert torch.allclose(farthest, 3 * 0.4 * deviations(images).flatten())


def test_pairs_are_attacked_in_each_image_s_own_unit() -> None:
    network = contrast_network()
    images = np.rint(uneven(side=8) * 255).astype(np.uint8)
    x, targets = torch.from_numpy(images / np.float32(255)), np.arange(5)
    made = pairs.attack_pairs(
        network, images, targets, attacks.iterated_tgsm, {"steps": 3, "epsilon": 0.4}, lambda finished: None
    )
    expected = stepped_by_hand(network, x, torch.from_numpy(targets), 3, 0.4)
    assert np.abs(made.pixels - (expected * 255).round().numpy()).max() <= 1
    moved = np.abs(made.pixels.astype(float) - images).max((1, 2, 3)) / 255
    reach = 3 * 0.4 * deviations(x).flatten().numpy()
    assert (moved <= reach + 0.5 / 255 + 1e-6).all()
    assert (moved > 0.9 * reach - 1 / 255).all()
    assert reach.max() > 5 * reach.min()


def nearly(network: Network, seed: int) -> Network:
    """A network that mostly answers as the given one does."""
    other = contrast_network(seed)
    other.load_state_dict(network.state_dict())
    noise = torch.Generator().manual_seed(seed)
    for parameter in other.parameters():
        parameter.add_(0.3 * parameter.std() * torch.randn(parameter.shape, generator=noise))
    return other


def test_a_sweep_judges_each_network_on_its_own_and_the_undefended_s_examples_in_normalized_units(
    monkeypatch: pytest.MonkeyPatch, small_digits: Dataset, tmp_path: Path
) -> None:
    undefended = contrast_network()
    images = np.rint(uneven(600, side=8) * 255).astype(np.uint8)
    x = torch.from_numpy(images / np.float32(255))
    undefended.dense2.bias.sub_(0.9 * undefended(x).mean(0))  # so that its answers differ
    networks = {"undefended": undefended, "double_backprop": nearly(undefended, 1)}
    answers = undefended(x).argmax(1).numpy()
    data = replace(small_digits, train_images=images, train_labels=answers, contrast_normalized=True)

    def obtain(name: str, *_: Any) -> Trained:
        return Trained(networks[name], {}, 0.5, tmp_path, "", {}, True)

    monkeypatch.setattr(train, "obtain", obtain)
    found = sweep.sweep("double_backprop", data, train.Schedule(), 3, CPU, tmp_path, values=(1.0,))

    def accuracy(maker: str, evaluated: str, epsilon: float) -> float:
        held, labels = x[::10], torch.from_numpy(answers[::10])
        held = held.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(networks[maker](held), labels), held)
        examples = (held.detach() + epsilon * deviations(held.detach()) * gradient.sign()).clamp(0, 1)
        return float((networks[evaluated](examples).argmax(1) == labels).double().mean())

    for row, model in ((found.undefended, "undefended"), (found.rows[0], "double_backprop")):
        for epsilon in (0.1, 0.2, 0.3):
            of_undefended, own = accuracy("undefended", model, epsilon), accuracy(model, model, epsilon)
            assert row.transferred[f"{epsilon}"] == pytest.approx(of_undefended, abs=1e-6)
            assert row.own[f"{epsilon}"] == pytest.approx(own, abs=1e-6)
    assert found.rows[0].own != found.rows[0].transferred
