"""Data and runs that several tests of the laboratory share."""

import dataclasses
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ml import datasets, pack

ROOT = Path(__file__).parents[2]

# Everything that needs the real MNIST is collected where it lies beside the repository, and only there.
MNIST_DIR = ROOT / ".." / "shared" / "data" / "mnist"
mnist_dirs = [pytest.param(MNIST_DIR, id="shared-mnist")] if MNIST_DIR.is_dir() else []


@dataclass(frozen=True)
class Run:
    """A finished run of `python -m ml.generate`."""

    out: Path
    checkpoints: Path
    stdout: str
    stderr: str
    pack: pack.Pack


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The whole chain as a user starts it, on the bundled digits."""
    folder = tmp_path_factory.mktemp("digits")
    out, checkpoints = folder / "digits-jsma", folder / "checkpoints"
    command = [sys.executable, "-m", "ml.generate", "--dataset", "digits", "--attack", "jsma"]
    command += ["--out", str(out), "--checkpoints", str(checkpoints), "--seed", "1", "--device", "cpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return Run(out, checkpoints, done.stdout, done.stderr, pack.read(out))


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


def save_dataset(data: datasets.Dataset, path: Path) -> None:
    """Keeps images and labels for another process."""
    np.savez(path, x=data.train_images, y=data.train_labels, tx=data.test_images, ty=data.test_labels)


def saved_dataset(path: Path) -> datasets.Dataset:
    """What `save_dataset` kept, as the digits."""
    arrays = np.load(path)
    return datasets.Dataset(
        name="digits",
        labels=tuple("0123456789"),
        train_images=arrays["x"],
        train_labels=arrays["y"],
        test_images=arrays["tx"],
        test_labels=arrays["ty"],
        source="",
        licence="",
        files={},
    )
