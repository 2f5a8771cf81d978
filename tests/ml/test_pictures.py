"""Pictures are of the examples that the attacks themselves make."""

import dataclasses

import numpy as np
import pytest
import torch

from ml import attacks, pictures
from ml.datasets import Dataset, to_float
from ml.models import Network

CPU = torch.device("cpu")


def network(contrast_normalized: bool = False) -> Network:
    fresh = Network((1, 12, 12), 10, contrast_normalized)
    fresh.initialize(torch.Generator().manual_seed(0))
    return fresh.requires_grad_(False)


@pytest.mark.parametrize("contrast_normalized", [False, True])
def test_the_path_of_iterated_tgsm_ends_where_the_attack_does(
    small_digits: Dataset, contrast_normalized: bool
) -> None:
    model = network(contrast_normalized)
    path = pictures.iterated_tgsm(model, small_digits, CPU)
    assert len(path.steps) == 11
    last = path.last
    x = torch.from_numpy(to_float(small_digits.test_images[last.sources]))
    targets = torch.from_numpy(last.targets)
    whole = attacks.iterated_tgsm(model, x, targets, 10, 0.1, model.units(x))
    assert np.array_equal(last.images, whole.images.numpy())
    assert np.array_equal(last.success, whole.success.numpy())
    assert np.array_equal(path.steps[0].images, last.originals)
    probabilities = model(whole.images).softmax(1)[torch.arange(90), targets]
    assert path.target_probabilities[-1] == pytest.approx(probabilities.numpy(), abs=1e-6)
    # Every label's first test image, towards every label but its own.
    assert sorted(zip(last.labels, last.targets, strict=True)) == [
        (s, t) for s in range(10) for t in range(10) if s != t
    ]
    for label, source in zip(last.labels, last.sources, strict=True):
        assert source == np.flatnonzero(small_digits.test_labels == label)[0]


def test_jsma_is_on_the_first_images_of_the_first_two_labels(small_digits: Dataset) -> None:
    letters = dataclasses.replace(small_digits, labels=tuple("ABCDEFGHIJ"))
    made = pictures.jsma(network(), letters, CPU)
    assert len(made.sources) == 2 * 5 * 9
    assert set(made.labels) == {0, 1}
    assert (made.targets != made.labels).all()
    changed = made.images != made.originals
    assert np.array_equal(made.pixels_changed, changed.sum((1, 2, 3)))
    assert made.pixels_changed.max() <= 144 / 4
    assert made.l2 == pytest.approx(np.linalg.norm((made.images - made.originals).reshape(90, -1), axis=1))


def test_input_gradients_are_the_attacks_own(small_digits: Dataset) -> None:
    model = network()
    shown = pictures.input_gradients({"one": model}, small_digits, CPU)
    assert shown.labels.tolist() == [0, 1, 2, 3, 4]
    for label, wanted in (("true", shown.labels), ("next", shown.labels + 1)):
        expected = attacks.loss_gradient(model, torch.from_numpy(shown.images), torch.from_numpy(wanted))
        assert np.array_equal(shown.of_models["one"][label], expected.numpy())
