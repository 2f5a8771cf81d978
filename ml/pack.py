"""Stimulus packs: a folder with `manifest.json` and `images/<sha256>.png` (format "stimulus-pack/1").

This module is the whole interface between the laboratory and the web app. It imports no torch, so that
serving a study needs none.
"""

import hashlib
import io
import json
import re
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
from PIL import Image

FORMAT = "stimulus-pack/1"

# The order in which models are listed wherever people read about them; other models follow by name.
MODEL_ORDER = ("undefended", "distilled", "adversarially_trained", "gradient_regularized", "double_backprop")

_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_MAX_NAME, _MAX_LABEL = 100, 50  # characters, as long as the app's columns
_MAX_COUNT = 2**31 - 1  # as large as the app's columns
_MAX_NUMBER = 1e300
_MAX_PIXELS = 4096 * 4096  # a pack comes from elsewhere: refuse to unpack a bomb

Pixels = npt.NDArray[np.uint8]


class PackError(ValueError):
    """A pack is not what its format promises; the message is one line naming the file and the fault."""


@dataclass(frozen=True)
class Stimulus:
    """One adversarial image.

    `l2` and `linf` are distances to the original in pixels of [0, 1]; `target_probability` is the model's
    softmax probability of the target on the stored 8-bit image; `iterations` counts the attack's steps.
    """

    sha256: str
    model: str
    source_index: int
    source_label: str
    target_label: str
    prediction: str
    target_probability: float
    iterations: int
    pixels_changed: int
    l2: float
    linf: float


@dataclass(frozen=True)
class CleanImage:
    """An unmodified test image."""

    sha256: str
    source_index: int
    source_label: str


@dataclass(frozen=True)
class Pack:
    """A pack that `read` has checked. `models` is in study order; `grids` maps a model to its grid's hash."""

    directory: Path
    name: str
    labels: tuple[str, ...]
    models: tuple[str, ...]
    pack_sha256: str
    manifest: dict[str, Any]
    stimuli: tuple[Stimulus, ...]
    grids: dict[str, str]
    originals: tuple[CleanImage, ...]
    clean: tuple[CleanImage, ...]

    def image(self, sha256: str) -> bytes:
        """The PNG's bytes. Raises PackError if the pack has no such image."""
        if not _SHA256.fullmatch(sha256):
            raise PackError(f"{self.directory}: {sha256!r} is not a sha256")
        path = _image_path(self.directory, sha256)
        try:
            return path.read_bytes()
        except OSError as error:
            raise PackError(f"{path}: cannot be read ({error.strerror})") from None


def canonical_json(obj: object) -> bytes:
    """UTF-8 JSON with sorted keys and no spaces; raises ValueError on NaN and infinities."""
    text = json.dumps(obj, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def pack_sha256(manifest: dict[str, Any]) -> str:
    """The identity of a pack: sha256 of its canonical manifest without the key "pack_sha256"."""
    rest = {key: value for key, value in manifest.items() if key != "pack_sha256"}
    return hashlib.sha256(canonical_json(rest)).hexdigest()


def study_order(models: Iterable[str]) -> tuple[str, ...]:
    """Model names in the order in which the project lists them."""
    known = {name: position for position, name in enumerate(MODEL_ORDER)}
    return tuple(sorted(models, key=lambda name: (known.get(name, len(known)), name)))


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


def write(directory: Path, manifest: dict[str, Any], images: Iterable[bytes]) -> Pack:
    """Writes a pack: all of it or nothing.

    `manifest` has every key of the format but "format" and "pack_sha256", which are set here; `images` are
    the PNGs it names by hash. The pack is built in a temporary folder beside `directory`, read back with
    every check of `read`, then renamed. A pack that was there is replaced, and further files beside its
    manifest (a README) are kept; a folder that is no pack is left alone. Raises PackError.
    """
    directory = Path(directory)
    if directory.exists() and not replaceable(directory):
        raise PackError(f"{directory}: exists and is not a stimulus pack; choose another folder")
    complete = {**manifest, "format": FORMAT}
    complete["pack_sha256"] = pack_sha256(complete)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{directory.name}-", dir=directory.parent) as holder:
        fresh, old = Path(holder) / "fresh", Path(holder) / "old"
        (fresh / "images").mkdir(parents=True)
        for data in images:
            _image_path(fresh, hashlib.sha256(data).hexdigest()).write_bytes(data)
        text = json.dumps(complete, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
        (fresh / "manifest.json").write_text(text + "\n", encoding="utf-8")
        read(fresh)
        if directory.exists():
            for extra in directory.iterdir():
                if extra.is_file() and extra.name != "manifest.json":
                    shutil.copy2(extra, fresh / extra.name)
            directory.rename(old)
        fresh.rename(directory)
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
    """Reads a pack and checks everything in it.

    Checked: the format; the hash of the manifest; every image's hash; that images are lossless 8-bit gray
    PNGs and all but the grids of one size; that labels and models are those the pack lists; that a
    (model, source_index, target_label) cell occurs once and that its prediction is its target.
    Raises PackError, whose message is one line naming the file and the fault.
    """
    directory = Path(directory)
    path = directory / "manifest.json"
    manifest = _load(path)
    if manifest.get("format") != FORMAT:
        raise PackError(f"{path}: format is {manifest.get('format')!r}, expected {FORMAT!r}")
    stated = _string(manifest, "pack_sha256", path)
    try:
        identity = pack_sha256(manifest)
    except ValueError:  # halves of characters have no UTF-8
        raise PackError(f"{path}: contains text that is not Unicode") from None
    if stated != identity:
        raise PackError(f"{path}: pack_sha256 does not match; the manifest was changed or is damaged")

    name = _string(manifest, "name", path)
    if not _NAME.fullmatch(name):
        raise PackError(f"{path}: the name {name!r} is not letters, digits, '.', '_' and '-' alone")
    labels = tuple(_labels(manifest, path))
    models = study_order(_models(manifest, path))
    grids = {model: _sha256(_dict(manifest, "grids", path), model, path) for model in models}
    if extra := sorted(set(manifest["grids"]) - set(models)):
        raise PackError(f"{path}: grids names {extra[0]!r}, which is not one of the pack's models")

    stimuli = tuple(_stimulus(record, models, labels, path) for record in _list(manifest, "stimuli", path))
    if not stimuli:
        raise PackError(f"{path}: the pack has no stimuli")
    cells: set[tuple[str, int, str]] = set()
    for s in stimuli:
        cell = (s.model, s.source_index, s.target_label)
        if cell in cells:
            raise PackError(f"{path}: model, source_index and target_label {cell} occur twice")
        cells.add(cell)
    originals, clean = (
        tuple(_clean_image(record, labels, path) for record in _list(manifest, key, path))
        if key in manifest
        else ()
        for key in ("originals", "clean")
    )

    unmodified = [image.source_index for image in originals + clean]
    if len(set(unmodified)) < len(unmodified):
        raise PackError(f"{path}: originals and clean name a source_index twice")

    size: tuple[int, ...] | None = None
    for sha256 in [s.sha256 for s in stimuli] + [c.sha256 for c in originals + clean]:
        shape = _check_image(directory, sha256)
        size = size or shape
        if shape != size:
            file = _image_path(directory, sha256)
            raise PackError(f"{file}: {shape[1]} x {shape[0]} pixels, the others {size[1]} x {size[0]}")
    for sha256 in grids.values():
        _check_image(directory, sha256)
    return Pack(directory, name, labels, models, stated, manifest, stimuli, grids, originals, clean)


def _load(path: Path) -> dict[str, Any]:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not a number")

    try:
        manifest = json.loads(path.read_bytes(), parse_constant=refuse)
    except OSError as error:
        raise PackError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise PackError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(manifest, dict):
        raise PackError(f"{path}: not a JSON object")
    return manifest


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


def _stimulus(record: object, models: tuple[str, ...], labels: tuple[str, ...], path: Path) -> Stimulus:
    if not isinstance(record, dict):
        raise PackError(f"{path}: a stimulus is not an object")
    stimulus = Stimulus(
        sha256=_sha256(record, "sha256", path),
        model=_string(record, "model", path),
        source_index=_count(record, "source_index", path),
        source_label=_label(record, "source_label", labels, path),
        target_label=_label(record, "target_label", labels, path),
        prediction=_label(record, "prediction", labels, path),
        target_probability=_number(record, "target_probability", path),
        iterations=_count(record, "iterations", path),
        pixels_changed=_count(record, "pixels_changed", path),
        l2=_number(record, "l2", path),
        linf=_number(record, "linf", path),
    )
    if stimulus.model not in models:
        raise PackError(f"{path}: {stimulus.model!r} is not one of the pack's models")
    if stimulus.target_label == stimulus.source_label:
        raise PackError(f"{path}: stimulus {stimulus.sha256} has its source label as its target")
    if stimulus.prediction != stimulus.target_label:
        raise PackError(f"{path}: the prediction of stimulus {stimulus.sha256} is not its target")
    if not 0 <= stimulus.target_probability <= 1:
        raise PackError(f"{path}: target_probability {stimulus.target_probability} is not in [0, 1]")
    return stimulus


def _clean_image(record: object, labels: tuple[str, ...], path: Path) -> CleanImage:
    if not isinstance(record, dict):
        raise PackError(f"{path}: an unmodified image is not an object")
    return CleanImage(
        sha256=_sha256(record, "sha256", path),
        source_index=_count(record, "source_index", path),
        source_label=_label(record, "source_label", labels, path),
    )


def _models(manifest: dict[str, Any], path: Path) -> list[str]:
    records = _list(manifest, "models", path)
    if not records or not all(isinstance(record, dict) for record in records):
        raise PackError(f"{path}: models must be objects with a name, one or more")
    names = [_string(record, "name", path) for record in records]
    for name in names:
        if not _NAME.fullmatch(name) or len(name) > _MAX_NAME:
            raise PackError(
                f"{path}: the model's name {name!r} is not letters, digits, '.', '_' and '-' alone"
            )
    if len(set(names)) < len(names):
        raise PackError(f"{path}: two models have one name")
    return names


def _labels(manifest: dict[str, Any], path: Path) -> list[str]:
    labels = _list(manifest, "labels", path)
    if not all(isinstance(label, str) and label.isprintable() and label.strip() for label in labels):
        raise PackError(f"{path}: labels must be strings to print, and not empty")
    if any(len(label) > _MAX_LABEL for label in labels):
        raise PackError(f"{path}: labels have {_MAX_LABEL} characters at most")
    if len(labels) < 2 or len(set(labels)) < len(labels):
        raise PackError(f"{path}: labels must be two or more different strings")
    return labels


def _label(record: dict[str, Any], key: str, labels: tuple[str, ...], path: Path) -> str:
    label = _string(record, key, path)
    if label not in labels:
        raise PackError(f"{path}: {key} {label!r} is not one of the pack's labels")
    return label


def _sha256(record: dict[str, Any], key: str, path: Path) -> str:
    value = _string(record, key, path)
    if not _SHA256.fullmatch(value):
        raise PackError(f"{path}: {key} {value!r} is not a sha256")
    return value


def _string(record: dict[str, Any], key: str, path: Path) -> str:
    value = record.get(key)
    if not isinstance(value, str):
        raise PackError(f"{path}: {key} is missing or not a string")
    return value


def _list(record: dict[str, Any], key: str, path: Path) -> list[Any]:
    value = record.get(key)
    if not isinstance(value, list):
        raise PackError(f"{path}: {key} is missing or not a list")
    return value


def _dict(record: dict[str, Any], key: str, path: Path) -> dict[str, Any]:
    value = record.get(key)
    if not isinstance(value, dict) or not value:
        raise PackError(f"{path}: {key} is missing, empty or not an object")
    return value


def _count(record: dict[str, Any], key: str, path: Path) -> int:
    value = record.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MAX_COUNT:
        raise PackError(f"{path}: {key} is missing or not a whole number from 0 to {_MAX_COUNT}")
    return value


def _number(record: dict[str, Any], key: str, path: Path) -> float:
    value = record.get(key)
    # The comparison also refuses NaN, and whole numbers too large for a float.
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= _MAX_NUMBER:
        raise PackError(f"{path}: {key} is missing or not a finite number of 0 or more")
    return float(value)
