"""Transfer against a loop over single images; gradients where they are known in closed form; overlap by sets."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ml import measurements
from ml.datasets import Dataset
from ml.measurements import FLOOR, Batch
from ml.models import Network

CPU = torch.device("cpu")


class Linear(nn.Module):
    """Logits W x, so that the gradient of the cross-entropy is W^T (softmax - one-hot)."""

    def __init__(self, scale: float, unit: float = 1.0, seed: int = 0) -> None:
        super().__init__()
        self.unit = unit
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(scale * torch.randn(10, 36, generator=generator), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T

    def units(self, x: Tensor) -> Tensor:
        return torch.full_like(x[:, :1, :1, :1], self.unit)


def random_batch(n: int = 6, side: int = 6, seed: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(n, 1, side, side, generator=generator)
    return Batch(images, torch.randint(10, (n,), generator=generator), 10)


def random_network(seed: int, contrast_normalized: bool) -> Network:
    network = Network((1, 8, 8), 10, contrast_normalized)
    network.initialize(torch.Generator().manual_seed(seed))
    return network.requires_grad_(False)


@pytest.mark.parametrize("contrast_normalized", [False, True])
def test_transfer_is_that_of_a_loop_over_single_images(
    contrast_normalized: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measurements, "_CHUNK", 4)  # 7 images in two parts
    of = random_batch(7, side=8)
    networks = {f"model {seed}": random_network(seed, contrast_normalized) for seed in range(3)}
    for network in networks.values():
        of.labels[0] = network(of.images[:1]).argmax()  # something is right before the attack
    progress: list[int] = []
    found = measurements.transfer(networks, of, on_progress=progress.append)
    assert sum(progress) == 2 * 3 * 3 * 8 * 7
    assert found.correct["fgsm"].dtype == found.correct["tgsm"].dtype == np.bool_
    seen = set()
    for attack, made_for, image in itertools.product(("fgsm", "tgsm"), networks, range(7)):
        x, y = of.images[image : image + 1].clone().requires_grad_(), of.labels[image : image + 1]
        wanted = y if attack == "fgsm" else (y + 1) % 10
        (gradient,) = torch.autograd.grad(F.cross_entropy(networks[made_for](x), wanted), x)
        away = gradient.sign() if attack == "fgsm" else -gradient.sign()
        pixels = x.detach()
        unit = pixels.std() if contrast_normalized else 1.0
        for epsilon in (0.0, 0.1, 0.4, 0.7):
            example = (pixels + epsilon * unit * away).clamp(0, 1)
            for evaluated, judge in networks.items():
                right = bool(judge(example).argmax() == y)
                assert found.answers(attack, made_for, evaluated, epsilon)[image] == right
                seen.add((right, epsilon > 0))
    assert len(seen) == 4  # both answers, with and without an attack


def test_shares_are_over_the_makers_and_epsilons_asked_for() -> None:
    random = np.random.default_rng(0)
    models, epsilons = ("a", "b", "c"), (0.0, 0.1, 0.2, 0.3)
    correct = {"fgsm": random.random((3, 4, 3, 20)) < 0.5}
    found = measurements.Transfer(models, epsilons, correct).share("fgsm", ["a", "c"], "b", 0.1, 0.2)
    for image in range(20):
        answers = [correct["fgsm"][maker, level, 1, image] for maker in (0, 2) for level in (1, 2)]
        assert found[image] == sum(answers) / 4


def test_gradient_norms_are_those_of_the_closed_form_in_normalized_units() -> None:
    of = random_batch()
    network = Linear(0.3, unit=0.25)
    found = measurements.gradients({"linear": network}, of)
    weight = network.weight.double().numpy()
    logits = of.images.flatten(1).double().numpy() @ weight.T
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    for label, wanted in (("true", of.labels.numpy()), ("next", (of.labels.numpy() + 1) % 10)):
        residual = probabilities - np.eye(10)[wanted]
        norms = 0.25 * np.linalg.norm(residual @ weight, axis=1)
        assert found.norms["linear"][label] == pytest.approx(norms, rel=1e-5)
        assert not found.vanished["linear"][label].any()
        expected = np.log(probabilities[np.arange(6), wanted])
        assert found.log_probability("linear", label) == pytest.approx(expected, abs=1e-5)
    assert np.exp(found.log_probabilities["linear"]).sum(1) == pytest.approx(1)


def test_gradients_vanish_where_float32_underflows_and_only_for_the_label_that_is_sure() -> None:
    of = random_batch()
    network = Linear(5e4)
    sure = Batch(of.images, network(of.images).argmax(1), 10)
    found = measurements.gradients({"sure": network}, sure)
    assert found.vanished["sure"]["true"].all()
    assert np.array_equal(found.norms["sure"]["true"], np.full(6, FLOOR))
    assert np.isnan(found.smoothness["sure"]["true"]).all()
    assert not found.vanished["sure"]["next"].any()
    assert (found.norms["sure"]["next"] > 100).all()
    # So FGSM leaves every image as it was, and TGSM does not.
    transfer = measurements.transfer({"sure": network}, sure)
    assert transfer.correct["fgsm"].all()
    assert not transfer.correct["tgsm"][0, -1, 0].all()


def test_a_gradient_whose_squares_underflow_has_a_norm_and_has_not_vanished() -> None:
    class Faint(Linear):
        def forward(self, x: Tensor) -> Tensor:
            logits = torch.zeros(len(x), 10)
            logits[:, 0] = 1e-22 * x.flatten(1).sum(1)
            return logits

    of = random_batch()
    found = measurements.gradients({"faint": Faint(1.0, unit=1e4)}, Batch(of.images, of.labels * 0 + 5, 10))
    # d(cross-entropy of label 5)/d(pixel) is p_0 1e-22 = 1e-23, in units of 1e4 pixels, over 36 pixels.
    assert found.norms["faint"]["true"] == pytest.approx(np.full(6, 1e-23 * 1e4 * 6), rel=1e-5)
    assert not found.vanished["faint"]["true"].any()


def test_smoothness_of_images_whose_autocorrelation_is_known() -> None:
    across, down = np.meshgrid(np.arange(16.0), np.arange(16.0))
    noise = np.random.default_rng(0).normal(size=(16, 16))
    images = np.stack([(-1.0) ** (across + down), across + down, noise, 1e-30 * noise, across * 0 + 3])
    checkers, ramp, rough, faint, constant = measurements.autocorrelation(images[:, None])
    assert checkers == pytest.approx(-1)
    assert ramp > 0.85
    assert abs(rough) < 0.15
    assert faint == pytest.approx(rough)
    assert np.isnan(constant)


def test_smoothness_counts_neighbors_across_and_down_alike() -> None:
    columns, rows = np.meshgrid(np.arange(8), np.arange(12))  # 12 rows of 8 pixels
    stripes = np.stack([(-1.0) ** columns, (-1.0) ** rows])
    # 12 * 7 neighbors across and 11 * 8 down: all alike along the stripes, all opposite across them.
    upright, level = measurements.autocorrelation(stripes[:, None])
    assert upright == pytest.approx((11 * 8 - 12 * 7) / (11 * 8 + 12 * 7))
    assert level == pytest.approx(-upright)


def test_faint_contrast_has_a_smoothness_and_rounding_has_none() -> None:
    noise = np.random.default_rng(0).normal(size=(16, 16))
    rounded = np.where(noise > 0, 0.1, np.nextafter(0.1, 1))
    rough, faint, constant = measurements.autocorrelation(
        np.stack([noise, 1 + 1e-8 * noise, rounded])[:, None]
    )
    assert faint == pytest.approx(rough, abs=1e-5)
    assert np.isnan(constant)


def test_overlap_counts_what_sets_count() -> None:
    models = ("a", "b", "c", "right")
    wrong = np.random.default_rng(0).random((4, 50)) < 0.3
    wrong[3] = False
    transfer = measurements.Transfer(models, (0.0, 0.4), {"fgsm": np.zeros((4, 2, 4, 50), dtype=bool)})
    transfer.correct["fgsm"][2, 1] = ~wrong
    found = measurements.overlaps(transfer)[2]
    assert found.made_for == "c"
    sets = {name: set(np.flatnonzero(wrong[row])) for row, name in enumerate(models)}
    for a, b in itertools.product(models, models):
        assert found.both(a, b) == len(sets[a] & sets[b])
        assert found.either(a, b) == len(sets[a] | sets[b])
    assert found.shared("a", "b") == len(sets["a"] & sets["b"]) / len(sets["a"] | sets["b"])
    assert found.shared("right", "right") is None
    regions = found.regions(["a", "b", "c"])
    assert len(regions) == 8
    assert sum(regions.values()) == 50
    assert regions["none"] == len(set(range(50)) - sets["a"] - sets["b"] - sets["c"])
    assert regions["a + c"] == len((sets["a"] & sets["c"]) - sets["b"])
    assert regions["a + b + c"] == len(sets["a"] & sets["b"] & sets["c"])


def test_one_misclassified_example_is_enough_to_be_shared() -> None:
    wrong = np.zeros((3, 50), dtype=bool)
    wrong[:2, 7] = True
    found = measurements.Overlap("a", ("a", "b", "right"), wrong)
    assert found.shared("a", "b") == 1
    assert found.shared("a", "right") == 0
    assert found.shared("right", "right") is None


def test_the_batch_is_the_first_test_images_and_its_targets_go_round(small_digits: Dataset) -> None:
    of = measurements.batch(small_digits, 50, CPU)
    assert torch.equal(
        (of.images * 255).round().to(torch.uint8), torch.from_numpy(small_digits.test_images[:50])
    )
    assert of.of("true").tolist() == small_digits.test_labels[:50].tolist()
    assert of.of("next").tolist() == [(label + 1) % 10 for label in small_digits.test_labels[:50]]
    assert len(measurements.batch(small_digits, 10**6, CPU).labels) == len(small_digits.test_labels)


def test_quantiles_are_of_what_is_known() -> None:
    hundred = np.append(np.arange(101.0), np.nan)
    expected = {"0.0": 0, "0.05": 5, "0.25": 25, "0.5": 50, "0.75": 75, "0.95": 95, "1.0": 100}
    assert measurements.quantiles(hundred) == pytest.approx(expected)
    assert measurements.quantiles(np.array([np.nan, 1.0, 2.0, 3.0]))["0.5"] == 2
    assert measurements.quantiles(np.array([np.nan])) == {}
