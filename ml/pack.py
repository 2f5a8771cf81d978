"""Stimulus packs: a folder with `manifest.json` and `images/<sha256>.png` (format "stimulus-pack/1").

This module is the whole interface between the laboratory and the web app. It imports no torch, so that
serving a study needs none. What the manifest must say is in `ml/manifest.py`, whether its numbers are those of its
images in `ml/consistency.py`. As a command:

    python -m ml.pack verify DIR

measures a pack anew (`ml/verify.py`).
"""

import hashlib
import json
import stat
import sys
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml import consistency
from ml.folders import replaced
from ml.manifest import (
    FORMAT,
    CleanImage,
    Contents,
    Stimulus,
    canonical_json,
    is_sha256,
    load_manifest,
    pack_sha256,
    read_manifest,
    study_order,
)
from ml.pixels import MAX_PNG, Pixels, check_png, decode_png, encode_png, grid_cells, grid_pixels
from ml.untrusted import PackError, read_file, shown

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
    "read_untrusted",
    "replaceable",
    "study_order",
    "write",
]

# Of a pack together, an image that several records show counted for each: all are in memory and measured, by a
# server that starts, too. The bundled packs have about a million.
_MAX_PIXELS = 2**28


@dataclass(frozen=True)
class Pack(Contents):
    """A pack that `read` has checked: what its manifest says, and the folder with its images."""

    directory: Path

    def image(self, sha256: str) -> bytes:
        """The PNG's bytes, which are those that were checked, as they have its hash. Raises PackError if the pack
        has no such image."""
        if not is_sha256(sha256):
            raise PackError(f"{self.directory}: {shown(sha256)} is not a sha256")
        return _image(self.directory, sha256)


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
        return load_manifest(directory / "manifest.json").get("format") == FORMAT
    except PackError:
        return False


def read(directory: Path) -> Pack:
    """Reads a pack and checks that it is one.

    Checked: that all is in plain files of bounded size; the format; the hash of the manifest; every image's hash;
    that images are lossless 8-bit gray PNGs with nothing beside their pixels, and all but the grids of one size;
    that labels and models are those the pack lists; that a (model, source_index, target_label) cell occurs once and
    that its prediction is its target. Files that no record names are not looked at.
    Raises PackError, whose message is one line naming the file and the fault.
    """
    return _read(Path(directory))[0]


def read_untrusted(directory: Path) -> Pack:
    """Reads a pack as `read` does, and measures all that needs neither its models nor its data set.

    Its numbers are then those of its images, every model has a stimulus for the same pairs, and the grids show them
    (`ml/consistency.py`). Raises PackError with the first difference.
    """
    read, pixels = _read(Path(directory))
    for check in consistency.checks(read, pixels):
        if check.differences:
            raise PackError(f"{read.directory / 'manifest.json'}: {check.differences[0]}")
    return read


def _read(directory: Path) -> tuple[Pack, dict[str, Pixels]]:
    """A pack and the (H, W) pixels of its images by hash."""
    _check_folder(directory)
    contents = read_manifest(directory / "manifest.json")
    if (directory / "images").is_symlink():
        raise PackError(f"{directory / 'images'}: is a link, not a folder")
    pixels: dict[str, Pixels] = {}
    shown = consistency.images(contents)
    total = 0
    size: tuple[int, ...] | None = None
    for sha256 in dict.fromkeys(image.sha256 for image in shown):
        pixels[sha256] = _pixels(directory, sha256)
        shape = pixels[sha256].shape
        size = size or shape
        if shape != size:
            file = _image_path(directory, sha256)
            raise PackError(f"{file}: {shape[1]} x {shape[0]} pixels, the others {size[1]} x {size[0]}")
        if (total := len(shown) * shape[0] * shape[1]) > _MAX_PIXELS:
            raise PackError(f"{directory}: the images have more than {_MAX_PIXELS:,} pixels together")
    for sha256 in contents.grids.values():
        if sha256 not in pixels:
            pixels[sha256] = _pixels(directory, sha256)
            total += pixels[sha256].size
            if total > _MAX_PIXELS:
                raise PackError(f"{directory}: the images have more than {_MAX_PIXELS:,} pixels together")
    return Pack(**vars(contents), directory=directory), pixels


def _check_folder(directory: Path) -> None:
    """The likely mistakes, said as what they are. The folder itself may be a link, what is in it may not."""
    try:
        mode = directory.stat().st_mode
        if stat.S_ISREG(mode) and zipfile.is_zipfile(directory):
            raise PackError(f"{directory}: a ZIP archive; unpack it and name the folder with manifest.json")
        if not stat.S_ISDIR(mode):
            raise PackError(f"{directory}: not a folder; a pack is a folder with manifest.json and images")
    except FileNotFoundError:
        raise PackError(f"{directory}: there is no such folder") from None
    except OSError as error:
        raise PackError(f"{directory}: cannot be read ({error.strerror})") from None


def _image_path(directory: Path, sha256: str) -> Path:
    return directory / "images" / f"{sha256}.png"


def _image(directory: Path, sha256: str) -> bytes:
    """The bytes of an image, which have the hash that names them."""
    path = _image_path(directory, sha256)
    data = read_file(path, MAX_PNG)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise PackError(f"{path}: the content does not have the sha256 in its name")
    return data


def _pixels(directory: Path, sha256: str) -> Pixels:
    """The (H, W) pixels of an image."""
    data = _image(directory, sha256)
    try:
        check_png(data)
        return decode_png(data)
    except PackError as error:
        raise PackError(f"{_image_path(directory, sha256)}: {error}") from None


if __name__ == "__main__":
    from ml.verify import main

    sys.exit(main())
