"""The archive of notMNIST's cleaned small set, as its author publishes it."""

import hashlib
import tarfile
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from ml.dataset_files import AGAIN, DatasetError, Source
from ml.pack import PackError, decode_png

LETTERS = tuple("ABCDEFGHIJ")

ARCHIVE = "notMNIST_small.tar.gz"
SMALL: Source = Source(
    mirrors=(
        "https://commondatastorage.googleapis.com/books1000/",
        "http://yaroslavvb.com/upload/notMNIST/",
    ),
    md5={ARCHIVE: "c9890a473a9769fda4bdf314aaf500dd"},
    gzipped=False,
)

_SHAPE = (28, 28)

Pixels = npt.NDArray[np.uint8]


def read_archive(path: Path) -> tuple[Pixels, Pixels, Pixels, Pixels]:
    """Training images (N, 28, 28), their labels (N,) as positions in LETTERS, test images and their labels.

    In the archive, `<folder>/<letter>/<font file>.png` is a letter of a typeface. A fifth of the font files, chosen
    by the hash of the name, is the test set with all of their letters, so that no typeface is in both. Files that
    are no 8-bit gray PNG of 28 x 28 pixels are passed over (some in the publisher's archive are broken). Of equal
    images one stays, in the test set if there is one there; one that occurs as several letters goes.
    Raises DatasetError.
    """
    kept: dict[bytes, tuple[int, bool]] = {}  # by pixels: label, whether it is a test image
    ambiguous = set()
    for name, data in sorted(_members(path)):
        letter, font = PurePosixPath(name).parts[-2:]
        try:
            pixels = decode_png(data)
        except PackError:
            continue
        if pixels.shape != _SHAPE:
            continue
        key, label = pixels.tobytes(), LETTERS.index(letter)
        test = hashlib.sha256(font.encode()).digest()[0] % 5 == 0
        before, was_test = kept.get(key, (label, False))
        if before != label:
            ambiguous.add(key)
        kept[key] = label, test or was_test
    order = sorted(set(kept) - ambiguous, key=lambda key: hashlib.sha256(key).digest())
    splits = []
    for wanted in (False, True):
        chosen = [(key, kept[key][0]) for key in order if kept[key][1] == wanted]
        if {label for _, label in chosen} != set(range(len(LETTERS))):
            raise DatasetError(f"{path}: not all letters from A to J have training and test images")
        splits.append(np.frombuffer(b"".join(key for key, _ in chosen), dtype=np.uint8).reshape(-1, *_SHAPE))
        splits.append(np.array([label for _, label in chosen], dtype=np.uint8))
    train_images, train_labels, test_images, test_labels = splits
    return train_images, train_labels, test_images, test_labels


def _members(path: Path) -> list[tuple[str, bytes]]:
    """Names and contents of the PNGs that lie in a letter's folder."""
    members = []
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                parts = PurePosixPath(member.name).parts
                if len(parts) > 1 and parts[-2] in LETTERS and parts[-1].endswith(".png"):
                    file = archive.extractfile(member)  # None for what is not a plain file
                    if file:
                        members.append((member.name, file.read()))
    except (tarfile.TarError, EOFError, OSError, KeyError) as error:
        raise DatasetError(f"{path}: cannot be read ({error}); {AGAIN}") from None
    return members
