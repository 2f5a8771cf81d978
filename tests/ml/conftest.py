"""Data and runs that several tests of the laboratory share."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ml import datasets
from ml.train import Schedule

ROOT = Path(__file__).parents[2]

# Everything that needs the real MNIST is collected where it lies beside the repository, and only there.
MNIST_DIR = ROOT / ".." / "shared" / "data" / "mnist"
mnist_dirs = [pytest.param(MNIST_DIR, id="shared-mnist")] if MNIST_DIR.is_dir() else []


def _shrink(images: datasets.Images) -> datasets.Images:
    smaller = [np.asarray(Image.fromarray(image[0, 4:24, 4:24]).resize((12, 12))) for image in images]
    return np.stack(smaller)[:, None]


@pytest.fixture(scope="session")
def small_digits() -> datasets.Dataset:
    """The digits without their margin at 12 x 12 pixels: the same problem for a fifth of the arithmetic."""
    digits = datasets.load("digits")
    return dataclasses.replace(
        digits, train_images=_shrink(digits.train_images), test_images=_shrink(digits.test_images)
    )


@pytest.fixture(scope="session")
def few_digits(small_digits: datasets.Dataset) -> datasets.Dataset:
    """0 to 5 alone: as many images of each, for a third of the pairs, and so few that `FEW` trains in a second."""
    train, test = small_digits.train_labels < 6, small_digits.test_labels < 6
    return dataclasses.replace(
        small_digits,
        labels=small_digits.labels[:6],
        train_images=small_digits.train_images[train],
        train_labels=small_digits.train_labels[train],
        test_images=small_digits.test_images[test],
        test_labels=small_digits.test_labels[test],
    )


# Small batches, and so steps enough, for `few_digits`: each of the study's networks reads them by then.
FEW = Schedule(epochs=1, batch=16)


def save_dataset(data: datasets.Dataset, path: Path) -> None:
    """Keeps images and labels for another process."""
    np.savez(path, x=data.train_images, y=data.train_labels, tx=data.test_images, ty=data.test_labels)


def saved_dataset(path: Path) -> datasets.Dataset:
    """What `save_dataset` kept, as the digits from 0 on that it has."""
    arrays = np.load(path)
    return datasets.Dataset(
        name="digits",
        labels=tuple("0123456789")[: arrays["y"].max() + 1],
        train_images=arrays["x"],
        train_labels=arrays["y"],
        test_images=arrays["tx"],
        test_labels=arrays["ty"],
        source="",
        licence="",
        files={},
    )
