"""A researcher's own labeled images: a folder for each label, with 8-bit gray PNGs in it."""

import hashlib
import io
import re
import struct
from pathlib import Path

import numpy as np
from PIL import Image

from ml.datasets import DATASETS, Dataset, DatasetError, Images, Labels
from ml.manifest import MAX_LABELS, label_fault
from ml.pack import PackError, decode_png

_MAX_LABEL = 50  # characters, as in a pack
_MAX_PIXELS = 4096 * 4096
_MAX_LISTED = 1000  # files with a hash of their own; of more, one hash tells them together

_GRAY_8_BIT = b"\x08\x00"  # bit depth and color type in a PNG's header


def load_folder(folder: Path, split: bool) -> Dataset:
    """The images of a folder as a data set with one label for each of its folders, in natural order of the names.

    Within a label, images are in natural order of their names ("2.png" before "10.png"); the data set has all of
    the first label first. They may be of any size, all of one. With `split`, the last fifth of each label, at
    least one image, is the test set; without, all are test images and the training arrays are empty.
    Hidden files and, beside the labels' folders, files that are no PNG are passed over; anything else that is no
    such image is refused. Raises DatasetError.
    """
    labels = _labels(folder)
    splits: dict[bool, list[tuple[Images, int]]] = {False: [], True: []}
    hashes: dict[str, str] = {}
    first: tuple[Path, tuple[int, ...]] | None = None
    for number, label in enumerate(labels):
        paths = _images(folder / label, at_least=2 if split else 1)
        tests = max(1, len(paths) // 5) if split else len(paths)
        for position, path in enumerate(paths):
            pixels, hashes[f"{label}/{path.name}"] = _read(path)
            first = first or (path, pixels.shape)
            if pixels.shape != first[1]:
                raise DatasetError(
                    f"{path}: {pixels.shape[1]} x {pixels.shape[0]} pixels where {first[0]} has "
                    f"{first[1][1]} x {first[1][0]}; bring all images to one size"
                )
            splits[position >= len(paths) - tests].append((pixels, number))
    assert first  # there are labels, and none without images
    train_images, train_labels = _stacked(splits[False], first[1])
    test_images, test_labels = _stacked(splits[True], first[1])
    name = _safe_name(folder)
    return Dataset(
        name=name,
        labels=labels,
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        source=f"images of the folder {name}",
        licence="unknown",
        files=hashes if len(hashes) <= _MAX_LISTED else _together(hashes),
    )


def _labels(folder: Path) -> tuple[str, ...]:
    """The names of a folder's folders, in natural order."""
    labels = []
    for path in _listing(folder):
        if path.is_dir():
            if not path.name.isprintable() or path.name != path.name.strip() or len(path.name) > _MAX_LABEL:
                raise DatasetError(
                    f"{str(path)!r}: a label is 1 to {_MAX_LABEL} characters to print, without a space "
                    f"at its ends; rename the folder"
                )
            if fault := label_fault(path.name):
                raise DatasetError(f"{str(path)!r}: {fault}; rename the folder")
            labels.append(path.name)
        elif path.suffix.lower() == ".png":
            raise DatasetError(f"{path}: lies in no label's folder; move it into the one of its label")
    if len(labels) > MAX_LABELS:
        raise DatasetError(
            f"{folder}: has {len(labels)} folders of images; a pack has {MAX_LABELS} labels at most"
        )
    if len(labels) < 2:
        raise DatasetError(
            f"{folder}: has {len(labels)} folders of images; make one for each label, two or more"
        )
    return tuple(labels)


def _images(folder: Path, at_least: int) -> list[Path]:
    """The PNGs of a label, in natural order."""
    paths = _listing(folder)
    for path in paths:
        if path.suffix.lower() != ".png" or not path.is_file() or not path.name.isprintable():
            raise DatasetError(
                f"{str(path)!r}: not a PNG file; a label's folder holds its images alone: convert it to an "
                f"8-bit gray PNG, or move it elsewhere"
            )
    if len(paths) < at_least:
        need = "one to train on and one to test with" if at_least > 1 else "one or more"
        raise DatasetError(f"{folder}: has {len(paths)} images; put PNGs there, {need}")
    return paths


def _listing(folder: Path) -> list[Path]:
    """What lies in a folder, without hidden files, in natural order of the names."""
    try:
        paths = [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError as error:
        raise DatasetError(f"{folder}: cannot be read as a folder ({error.strerror}); name another") from None
    return sorted(paths, key=_natural)


def _natural(path: Path) -> tuple[list[str | int], str]:
    """Numbers in a name by their value."""
    parts = re.split(r"([0-9]+)", path.name)
    return [int(part) if position % 2 else part for position, part in enumerate(parts)], path.name


def _read(path: Path) -> tuple[Images, str]:
    """The (H, W) pixels of an image and the sha256 of its file."""
    remedy = "save it as an 8-bit gray PNG without transparency or animation, or remove it"
    try:
        if path.stat().st_size > 2 * _MAX_PIXELS:
            raise DatasetError(f"{path}: larger than {2 * _MAX_PIXELS:,} bytes; {remedy}")
        data = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    try:
        _check(data)
        return decode_png(data), hashlib.sha256(data).hexdigest()
    except PackError as error:
        raise DatasetError(f"{path}: {' '.join(str(error).split())}; {remedy}") from None


def _check(data: bytes) -> None:
    """Raises PackError for what Pillow would read without a word, or only after unpacking too much."""
    if data[:8] != b"\x89PNG\r\n\x1a\n" or data[12:16] != b"IHDR" or len(data) < 33:
        raise PackError("not a readable PNG")
    width, height = struct.unpack(">II", data[16:24])
    if data[24:26] != _GRAY_8_BIT:
        raise PackError(f"not an 8-bit gray PNG (bit depth {data[24]}, color type {data[25]})")
    if width * height > _MAX_PIXELS:
        raise PackError(f"too large ({width} x {height} pixels)")
    before_pixels = data[: data.find(b"IDAT")]
    if b"acTL" in before_pixels:
        raise PackError("an animation")
    if b"tRNS" in before_pixels:
        raise PackError("has transparency")
    try:
        Image.open(io.BytesIO(data), formats=["PNG"]).verify()  # the checksums, to the end of the file
    except Exception as error:  # Pillow raises many kinds on broken bytes
        raise PackError(f"not a readable PNG ({error})") from None


def _stacked(images: list[tuple[Images, int]], shape: tuple[int, ...]) -> tuple[Images, Labels]:
    """Images (N, 1, H, W) and labels (N,), also of none."""
    stacked = np.array([pixels for pixels, _ in images], dtype=np.uint8).reshape(-1, 1, *shape)
    return stacked, np.array([label for _, label in images], dtype=np.int64)


def _safe_name(folder: Path) -> str:
    """The folder's name with nothing in it that a file name or a pack's name may not have."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).strip("-._")[:80] or "images"
    return f"{name}-images" if name in DATASETS else name  # which has a schedule and checkpoints of its own


def _together(hashes: dict[str, str]) -> dict[str, str]:
    """One hash for many files: that of the lines that sha256sum prints of them, in the data set's order."""
    lines = "".join(f"{sha256}  {name}\n" for name, sha256 in hashes.items())
    return {f"{len(hashes):,} images": hashlib.sha256(lines.encode()).hexdigest()}
