"""Stimulus packs: a folder with `manifest.json` and `images/<sha256>.png` (format "stimulus-pack/1").

This module is the whole interface between the laboratory and the web app. It imports no torch, so that
serving a study needs none. What the manifest must say is in `ml/manifest.py`. As a command:

    python -m ml.pack verify DIR

measures a pack anew (`ml/verify.py`).
"""

import hashlib
import io
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ml.folders import replaced
from ml.manifest import (
    FORMAT,
    CleanImage,
    Contents,
    PackError,
    Stimulus,
    canonical_json,
    is_sha256,
    pack_sha256,
    read_manifest,
    study_order,
)

__all__ = [
    "FORMAT",
    "CleanImage",
    "Pack",
    "PackError",
    "Pixels",
    "Stimulus",
    "canonical_json",
    "decode_png",
    "encode_png",
    "grid_cells",
    "grid_pixels",
    "pack_sha256",
    "read",
    "replaceable",
    "study_order",
    "write",
]

_MAX_PIXELS = 4096 * 4096  # a pack comes from elsewhere: refuse to unpack a bomb

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Pack(Contents):
    """A pack that `read` has checked: what its manifest says, and the folder with its images."""

    directory: Path

    def image(self, sha256: str) -> bytes:
        """The PNG's bytes. Raises PackError if the pack has no such image."""
        if not is_sha256(sha256):
            raise PackError(f"{self.directory}: {sha256!r} is not a sha256")
        path = _image_path(self.directory, sha256)
        try:
            return path.read_bytes()
        except OSError as error:
            raise PackError(f"{path}: cannot be read ({error.strerror})") from None


def encode_png(pixels: Pixels) -> bytes:
    """A lossless 8-bit gray PNG of (H, W) pixels: the same pixels give the same bytes."""
    if pixels.dtype != np.uint8 or pixels.ndim != 2:
        raise ValueError(f"expected uint8 pixels (H, W), got {pixels.dtype} {pixels.shape}")
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def decode_png(data: bytes) -> Pixels:
    """The (H, W) uint8 pixels of a lossless 8-bit gray PNG; raises PackError for anything else."""
    try:
        image = Image.open(io.BytesIO(data), formats=["PNG"])
        if image.mode != "L":
            raise PackError(f"not an 8-bit gray PNG (mode {image.mode})")
        if image.width * image.height > _MAX_PIXELS:
            raise PackError(f"too large ({image.width} x {image.height} pixels)")
        return np.array(image, dtype=np.uint8)
    except PackError:
        raise
    except Exception as error:  # Pillow raises many kinds on broken bytes
        raise PackError(f"not a readable PNG ({error})") from None


def grid_pixels(cells: Pixels, gap: int = 1, ink: int = 96) -> Pixels:
    """One picture of (R, C, H, W) cells at native size, with `gap` pixels of gray between and around them."""
    rows, columns, height, width = cells.shape
    grid = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap), ink, dtype=np.uint8)
    for row in range(rows):
        for column in range(columns):
            top, left = gap + row * (height + gap), gap + column * (width + gap)
            grid[top : top + height, left : left + width] = cells[row, column]
    return grid


def grid_cells(grid: Pixels, rows: int, columns: int, gap: int = 1) -> Pixels:
    """The cells (R, C, H, W) of a picture by `grid_pixels`; raises PackError if it cannot have that many."""
    height, width = ((size - gap) // n - gap for size, n in zip(grid.shape, (rows, columns), strict=True))
    if grid.shape != (rows * (height + gap) + gap, columns * (width + gap) + gap) or min(height, width) < 1:
        size = f"{grid.shape[1]} x {grid.shape[0]} pixels"
        raise PackError(f"{size} are no grid of {rows} x {columns} cells with lines of {gap} between")
    cells = grid[gap:, gap:].reshape(rows, height + gap, columns, width + gap)[:, :height, :, :width]
    return cells.swapaxes(1, 2)


def write(directory: Path, manifest: dict[str, Any], images: Iterable[bytes]) -> Pack:
    """Writes a pack: all of it or nothing.

    `manifest` has every key of the format but "format" and "pack_sha256", which are set here; `images` are
    the PNGs it names by hash. The pack is built in a temporary folder beside `directory`, read back with
    every check of `read`, then renamed. A pack that was there is replaced, and what lies beside its manifest and
    images (a README) is kept; a folder that is no pack is left alone. Raises PackError, OSError.
    """
    directory = Path(directory)
    if directory.exists() and not replaceable(directory):
        raise PackError(f"{directory}: exists and is not a stimulus pack; choose another folder")
    complete = {**manifest, "format": FORMAT}
    complete["pack_sha256"] = pack_sha256(complete)
    with replaced(directory, lambda old: ("images", "manifest.json")) as fresh:
        (fresh / "images").mkdir()
        for data in images:
            _image_path(fresh, hashlib.sha256(data).hexdigest()).write_bytes(data)
        text = json.dumps(complete, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
        (fresh / "manifest.json").write_text(text + "\n", encoding="utf-8")
        read(fresh)
    return read(directory)


def replaceable(directory: Path) -> bool:
    """Whether `write` may replace this folder: it is empty or holds a manifest of this format."""
    if not directory.is_dir():
        return False
    if not any(directory.iterdir()):
        return True
    try:
        manifest = json.loads((directory / "manifest.json").read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and manifest.get("format") == FORMAT


def read(directory: Path) -> Pack:
    """Reads a pack and checks everything that needs neither its models nor its data set.

    Checked: the format; the hash of the manifest; every image's hash; that images are lossless 8-bit gray
    PNGs and all but the grids of one size; that labels and models are those the pack lists; that a
    (model, source_index, target_label) cell occurs once and that its prediction is its target.
    Raises PackError, whose message is one line naming the file and the fault.
    """
    directory = Path(directory)
    contents = read_manifest(directory / "manifest.json")
    size: tuple[int, ...] | None = None
    hashes = [s.sha256 for s in contents.stimuli]
    hashes += [image.sha256 for image in contents.unmodified]
    for sha256 in hashes:
        shape = _check_image(directory, sha256)
        size = size or shape
        if shape != size:
            file = _image_path(directory, sha256)
            raise PackError(f"{file}: {shape[1]} x {shape[0]} pixels, the others {size[1]} x {size[0]}")
    for sha256 in contents.grids.values():
        _check_image(directory, sha256)
    return Pack(**vars(contents), directory=directory)


def _image_path(directory: Path, sha256: str) -> Path:
    return directory / "images" / f"{sha256}.png"


def _check_image(directory: Path, sha256: str) -> tuple[int, ...]:
    """The (H, W) of an image whose bytes have the hash that names them."""
    path = _image_path(directory, sha256)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PackError(f"{path}: cannot be read ({error.strerror})") from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise PackError(f"{path}: the content does not have the sha256 in its name")
    try:
        return decode_png(data).shape
    except PackError as error:
        raise PackError(f"{path}: {error}") from None


if __name__ == "__main__":
    from ml.verify import main

    sys.exit(main())
