"""What a stimulus pack's `manifest.json` must say (format "stimulus-pack/1"), checked record by record."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml.untrusted import PackError, parse_json, read_file, shown

FORMAT = "stimulus-pack/1"

# The order in which models are listed wherever people read about them; other models follow by name.
MODEL_ORDER = ("undefended", "distilled", "adversarially_trained", "gradient_regularized", "double_backprop")

_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_NAME_RULE = "letters, digits, '.', '_' and '-' alone, 100 at most, the first a letter or digit"
_MAX_MANIFEST = 16 * 2**20  # bytes; a stimulus takes 340
_MAX_NAME, _MAX_LABEL = 100, 50  # characters, as long as the app's columns
MAX_LABELS, _MAX_MODELS = 200, 20  # a participant sees each label of each model
_MAX_COUNT = 2**31 - 1  # as large as the app's columns
_MAX_NUMBER = 1e300
_RESERVED = "none"  # the answer that none of the labels is plausible
# What is printed, yet not seen: joiners and fillers, selectors of a variant, the empty braille cell.
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)


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

    def __str__(self) -> str:
        return f"{self.model}, source_index {self.source_index} to {self.target_label}"


@dataclass(frozen=True)
class CleanImage:
    """An unmodified test image."""

    sha256: str
    source_index: int
    source_label: str

    def __str__(self) -> str:
        return f"source_index {self.source_index} unmodified"


@dataclass(frozen=True)
class Contents:
    """What a manifest says, checked. `manifest` is all of its JSON, `models` is in study order, and `grids` maps a
    model to its grid's hash."""

    name: str
    labels: tuple[str, ...]
    models: tuple[str, ...]
    pack_sha256: str
    manifest: dict[str, Any]
    stimuli: tuple[Stimulus, ...]
    grids: dict[str, str]
    originals: tuple[CleanImage, ...]
    clean: tuple[CleanImage, ...]

    @property
    def unmodified(self) -> tuple[CleanImage, ...]:
        """The originals of the stimuli and the images that are clean."""
        return self.originals + self.clean

    @property
    def dataset(self) -> dict[str, Any]:
        """The manifest's record on the data set, empty if it has none."""
        record = self.manifest.get("dataset")
        return record if isinstance(record, dict) else {}


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


def is_sha256(text: str) -> bool:
    """Whether this is a sha256 in lower-case hexadecimal, and so safe as a file's name."""
    return _SHA256.fullmatch(text) is not None


def is_name(text: str) -> bool:
    """Whether a pack or a model may be called this."""
    return _NAME.fullmatch(text) is not None and len(text) <= _MAX_NAME


def label_fault(label: object) -> str | None:
    """Why nothing can be labeled this; None where it can."""
    if not isinstance(label, str) or not label.isprintable() or not _seen(label):
        return "labels must be strings to print, and not empty"
    if label != label.strip():
        return "labels have no spaces at their ends"
    if len(label) > _MAX_LABEL:
        return f"labels have {_MAX_LABEL} characters at most"
    if _seen(label).casefold() == _RESERVED:
        return f"a label cannot be {shown(label)}, which stands for the answer that none is plausible"
    return None


def read_manifest(path: Path) -> Contents:
    """Reads a manifest and checks all that it says by itself; raises PackError."""
    manifest = load_manifest(path)
    top = _Record(manifest, path)
    stated_format = manifest.get("format")
    if stated_format != FORMAT:
        other = isinstance(stated_format, str) and stated_format.startswith("stimulus-pack/")
        advice = "; another release of this program reads it" if other else ""
        raise top.fault(f"format is {shown(stated_format)}, expected {FORMAT!r}{advice}")
    stated = top.string("pack_sha256")
    if stated != pack_sha256(manifest):
        raise top.fault("pack_sha256 does not match; the manifest was changed or is damaged")

    name = top.string("name")
    if not is_name(name):
        raise top.fault(f"the name {shown(name)} is not {_NAME_RULE}")
    labels, models = _labels(top), study_order(_models(top))
    named = top.inner("grids")
    grids = {model: named.sha256(model) for model in models}
    if extra := sorted(set(named.values) - set(models)):
        raise top.fault(f"grids names {shown(extra[0])}, which is not one of the pack's models")

    stimuli = tuple(_stimulus(record, models, labels) for record in top.records("stimuli", "a stimulus"))
    if not stimuli:
        raise top.fault("the pack has no stimuli")
    cells: set[tuple[str, int, str]] = set()
    for s in stimuli:
        cell = (s.model, s.source_index, s.target_label)
        if cell in cells:
            raise top.fault(f"model, source_index and target_label {cell} occur twice")
        cells.add(cell)
    originals, clean = (
        tuple(_clean_image(record, labels) for record in top.records(key, "an unmodified image"))
        if key in manifest
        else ()
        for key in ("originals", "clean")
    )
    unmodified = [image.source_index for image in originals + clean]
    if len(set(unmodified)) < len(unmodified):
        raise top.fault("originals and clean name a source_index twice")
    return Contents(name, labels, models, stated, manifest, stimuli, grids, originals, clean)


def load_manifest(path: Path) -> dict[str, Any]:
    """The JSON object in a file, of which nothing more is known; raises PackError."""
    try:
        manifest = parse_json(read_file(path, _MAX_MANIFEST))
    except PackError:
        raise
    except ValueError as error:
        raise PackError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(manifest, dict):
        raise PackError(f"{path}: not a JSON object")
    return manifest


@dataclass(frozen=True)
class _Record:
    """One JSON object of the manifest at `path`: each method gives a field that is what it should be. `place` says
    where in the manifest it stands."""

    values: dict[str, Any]
    path: Path
    place: str = ""

    def fault(self, message: str) -> PackError:
        return PackError(f"{self.path}: {self.place}{message}")

    def string(self, key: str) -> str:
        value = self.values.get(key)
        if not isinstance(value, str):
            raise self.fault(f"{key} is missing or not a string")
        return value

    def sha256(self, key: str) -> str:
        value = self.string(key)
        if not is_sha256(value):
            raise self.fault(f"{key} {shown(value)} is not a sha256")
        return value

    def label(self, key: str, labels: tuple[str, ...]) -> str:
        label = self.string(key)
        if label not in labels:
            raise self.fault(f"{key} {shown(label)} is not one of the pack's labels")
        return label

    def count(self, key: str) -> int:
        value = self.values.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MAX_COUNT:
            raise self.fault(f"{key} is missing or not a whole number from 0 to {_MAX_COUNT}")
        return value

    def number(self, key: str) -> float:
        value = self.values.get(key)
        # The comparison also refuses NaN, and whole numbers too large for a float.
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= _MAX_NUMBER:
            raise self.fault(f"{key} is missing or not a finite number of 0 or more")
        return float(value)

    def items(self, key: str) -> list[Any]:
        value = self.values.get(key)
        if not isinstance(value, list):
            raise self.fault(f"{key} is missing or not a list")
        return value

    def records(self, key: str, each: str) -> "list[_Record]":
        values = self.items(key)
        if not all(isinstance(value, dict) for value in values):
            raise self.fault(f"{each} is not an object")
        return [_Record(value, self.path, f"{key}[{i}]: ") for i, value in enumerate(values)]

    def inner(self, key: str) -> "_Record":
        value = self.values.get(key)
        if not isinstance(value, dict) or not value:
            raise self.fault(f"{key} is missing, empty or not an object")
        return _Record(value, self.path)


def _stimulus(record: _Record, models: tuple[str, ...], labels: tuple[str, ...]) -> Stimulus:
    stimulus = Stimulus(
        sha256=record.sha256("sha256"),
        model=record.string("model"),
        source_index=record.count("source_index"),
        source_label=record.label("source_label", labels),
        target_label=record.label("target_label", labels),
        prediction=record.label("prediction", labels),
        target_probability=record.number("target_probability"),
        iterations=record.count("iterations"),
        pixels_changed=record.count("pixels_changed"),
        l2=record.number("l2"),
        linf=record.number("linf"),
    )
    if stimulus.model not in models:
        raise record.fault(f"{shown(stimulus.model)} is not one of the pack's models")
    if stimulus.target_label == stimulus.source_label:
        raise record.fault(f"stimulus {stimulus.sha256} has its source label as its target")
    if stimulus.prediction != stimulus.target_label:
        raise record.fault(f"the prediction of stimulus {stimulus.sha256} is not its target")
    if not 0 <= stimulus.target_probability <= 1:
        raise record.fault(f"target_probability {stimulus.target_probability} is not in [0, 1]")
    return stimulus


def _clean_image(record: _Record, labels: tuple[str, ...]) -> CleanImage:
    return CleanImage(
        sha256=record.sha256("sha256"),
        source_index=record.count("source_index"),
        source_label=record.label("source_label", labels),
    )


def _models(top: _Record) -> tuple[str, ...]:
    values = top.items("models")
    if not values or not all(isinstance(value, dict) for value in values):
        raise top.fault("models must be objects with a name, one or more")
    if len(values) > _MAX_MODELS:
        raise top.fault(f"a pack has {_MAX_MODELS} models at most, not {len(values):,}")
    names = tuple(record.string("name") for record in top.records("models", "a model"))
    for name in names:
        if not is_name(name):
            raise top.fault(f"the model's name {shown(name)} is not {_NAME_RULE}")
    if len({name.casefold() for name in names}) < len(names):
        raise top.fault("two models have one name")  # files named so would be one on many systems
    return names


def _labels(top: _Record) -> tuple[str, ...]:
    labels = top.items("labels")
    if len(labels) > MAX_LABELS:
        raise top.fault(f"a pack has {MAX_LABELS} labels at most, not {len(labels):,}")
    for label in labels:
        if fault := label_fault(label):
            raise top.fault(fault)
    if len(labels) < 2 or len({_seen(label) for label in labels}) < len(labels):
        raise top.fault("labels must be two or more different strings, that look different")
    return tuple(labels)


def _seen(label: str) -> str:
    """What a reader can tell a label by: its case, but not how its characters are composed."""
    return _UNSEEN.sub("", unicodedata.normalize("NFKC", label)).strip()
