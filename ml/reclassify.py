"""What only PyTorch can measure of a stimulus pack again: what its models see in its images, and whether its attack
could have made them (which attacks there are, `ml/attacks.py` knows)."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from ml import checkpoints as checkpoint_files
from ml import train
from ml.attacks import ATTACKS
from ml.checkpoints import CheckpointError, Trained
from ml.datasets import Dataset
from ml.models import LEAST_DEVIATION
from ml.pack import CleanImage, Pack, Pixels, Stimulus

TOLERANCE = 1e-3  # of target_probability: another processor rounds differently

_CHUNK = 1000  # images that a network is shown at once
_ROUNDING = 0.51  # of 255: to 8 bits, and a little for float32
_MOST_EPSILON, _MOST_STEPS = 1e6, 2**31 - 1  # of what is no mistake

Gray = npt.NDArray[np.float64]  # (H, W), 0 to 255


@dataclass(frozen=True)
class Answer:
    """What came of asking one model: a line or two to read, the number of images asked about, and one line for each
    difference. `complete` is false where the model could not be asked."""

    model: str
    summary: str
    count: int
    differences: list[str]
    complete: bool = True


def ask(read: Pack, pixels: dict[str, Pixels], checkpoints: Path, dataset: Dataset | None) -> list[Answer]:
    """Asks each model whose checkpoint lies anywhere in the folder `checkpoints` about its stimuli and all
    unmodified images, and about all test images of `dataset` if given. `pixels` are the pack's images by hash."""
    records = {record["name"]: record for record in read.manifest["models"]}
    stated = {model: str(records[model].get("checkpoint_sha256")) for model in read.models}
    paths = _find(checkpoints, set(stated.values()))
    answers = []
    for model in read.models:
        path = paths.get(stated[model])
        try:
            if path is None:
                raise CheckpointError("checkpoint not here")
            trained = checkpoint_files.load(path)
        except CheckpointError as error:
            answers.append(Answer(model, f"{model}: {error}: not re-classified", 0, [], complete=False))
        else:
            answers.append(_ask_one(read, pixels, records[model], trained, dataset))
    return answers


def _find(checkpoints: Path, wanted: set[str]) -> dict[str, Path]:
    """The checkpoint files that have one of the hashes, by hash."""
    found: dict[str, Path] = {}
    for path in sorted(checkpoints.rglob("*.safetensors")):
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if sha256 in wanted:
            found.setdefault(sha256, path)
    return found


def _ask_one(
    read: Pack, pixels: dict[str, Pixels], record: dict[str, Any], trained: Trained, dataset: Dataset | None
) -> Answer:
    """Asks the network of a checkpoint; `record` is what the manifest says of its model."""
    model = record["name"]
    differences = list(_training_faults(read, record, trained))
    checkpoint = f"checkpoint {trained.checkpoint}"
    network, size = trained.network, next(iter(pixels.values())).shape
    if network.image_shape != (1, *size) or network.classes != len(read.labels):
        differences.append(
            f"{model}: its checkpoint is for images {network.image_shape} with {network.classes} labels"
        )
        return Answer(model, f"{model}: not re-classified ({checkpoint})", 0, differences, complete=False)

    stimuli = [s for s in read.stimuli if s.model == model]
    images: list[Stimulus | CleanImage] = [*stimuli, *read.unmodified]
    stack = np.stack([pixels[image.sha256] for image in images])[:, None]  # (N, 1, H, W)
    fooled, right, largest = 0, 0, 0.0
    for image, row in zip(images, _probabilities(trained, stack, model), strict=True):
        answer = read.labels[row.argmax()]
        if isinstance(image, CleanImage):
            right += answer == image.source_label
            if answer != image.source_label:
                differences.append(f"{image}: {model} reads it as {answer}")
            continue
        fooled += answer == image.target_label
        if answer != image.target_label:
            differences.append(f"{image}: re-classified as {answer}")
        stated, probability = image.target_probability, float(row[read.labels.index(image.target_label)])
        largest = max(largest, abs(probability - stated))
        if not abs(probability - stated) <= TOLERANCE:  # also where the network has no number
            differences.append(f"{image}: target_probability {stated}, re-classified {probability:.6f}")
    summary = (
        f"{model}: re-classified {fooled} of {len(stimuli)} ({checkpoint})\n"
        f"  target_probability within {largest:.6f}; "
        f"read {right} of {len(read.unmodified)} unmodified images rightly"
    )
    if dataset is not None and dataset.test_images.shape[1:] == network.image_shape:
        answers = _probabilities(trained, dataset.test_images, f"{model}, all test images").argmax(1)
        accuracy = float((answers == dataset.test_labels).mean())
        summary += f"; {accuracy:.2%} of {len(answers):,} test images"
        if not abs(accuracy - trained.clean_accuracy) <= train.ACCURACY_TOLERANCE:
            differences.append(
                f"{model}: clean_accuracy {trained.clean_accuracy:.6f} in its checkpoint, measured {accuracy:.6f}"
            )
    return Answer(model, summary, len(images), differences)


def _training_faults(read: Pack, record: dict[str, Any], trained: Trained) -> Iterator[str]:
    """Where the manifest's record on a model is not what its checkpoint says of itself."""
    model, config = record["name"], trained.config
    if config.get("model") != model:
        yield f"{model}: its checkpoint_sha256 is that of a checkpoint of {config.get('model')!r}"
    elif not _same(record.get("training"), config):
        yield f"{model}: its training is not the configuration in its checkpoint"
    if config.get("dataset") != read.dataset.get("name"):
        yield f"{model}: its checkpoint was trained on the data set {config.get('dataset')!r}"
    accuracy = round(trained.clean_accuracy, 6)
    if not _same(record.get("clean_accuracy"), accuracy):
        yield f"{model}: clean_accuracy {record.get('clean_accuracy')!r}, in its checkpoint {accuracy}"


def _same(one: object, other: object) -> bool:
    """Whether two things from JSON are written alike; to Python, true would be 1."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _probabilities(trained: Trained, images: npt.NDArray[np.uint8], what: str) -> npt.NDArray[np.float64]:
    """The softmax (N, K) of a network's answers to 8-bit images (N, C, H, W)."""
    parts = []
    with tqdm(total=len(images), desc=f"re-classify: {what}", unit="image", delay=2, leave=False) as bar:
        for start in range(0, len(images), _CHUNK):
            logits = train.predict(trained.network, images[start : start + _CHUNK]).double()
            parts.append(logits.softmax(1).numpy())
            bar.update(len(logits))
    return np.concatenate(parts)


@dataclass(frozen=True)
class Possible:
    """What came of comparing stimuli with what the pack's attack can make: how many could be compared, one line for
    each difference, and lines on what was not checked, or not as the attack is here."""

    attack: str
    count: int
    differences: list[str]
    notes: list[str]


def possible(read: Pack, pixels: dict[str, Pixels]) -> Possible:
    """Whether the attack that a pack names could have made its stimuli from their originals in their iterations."""
    stated = read.manifest.get("attack")
    stated = stated if isinstance(stated, dict) else {}
    name, parameters = stated.get("name"), stated.get("parameters")
    if not isinstance(name, str) or name not in ATTACKS:
        return Possible(str(name), 0, [], [f"attack {name!r}: not known here: not checked"])
    if name not in _FAULTS:
        return Possible(name, 0, [], [f"attack {name}: what it can make is not known here: not checked"])
    notes, usual = [], ATTACKS[name][1]
    if not _same(parameters, usual):
        notes.append(f"attack {name}: parameters {parameters!r}, here {usual!r}: checked with the pack's")
    normalized = {
        record["name"]
        for record in read.manifest["models"]
        if isinstance(record.get("training"), dict) and record["training"].get("contrast_normalized") is True
    }
    originals = {image.source_index: pixels[image.sha256] for image in read.originals}
    measurable = [s for s in read.stimuli if s.source_index in originals]
    if without := len(read.stimuli) - len(measurable):
        notes.append(f"attack {name}: not checked for {without} stimuli without their original")
    differences = []
    try:
        for s in measurable:
            original = originals[s.source_index].astype(np.float64)
            unit = max(original.std(ddof=1) / 255, LEAST_DEVIATION) if s.model in normalized else 1.0
            faults = _FAULTS[name](
                s.iterations, pixels[s.sha256].astype(np.float64), original, parameters, unit
            )
            differences += [f"{s}: {fault}" for fault in faults]
    except _ParameterError as error:
        differences = [f"attack {name}: {error}"]
    return Possible(name, len(measurable), differences, notes)


class _ParameterError(ValueError):
    """A parameter of an attack is none; the message says which."""


def _jsma_faults(iterations: int, image: Gray, original: Gray, parameters: object, _: float) -> Iterator[str]:
    """Each step moves two pixels by theta, or to the end of their range, where they stay; `gamma` of the pixels may
    be changed."""
    theta, gamma = _number(parameters, "theta", -1, 1), _number(parameters, "gamma", 0, 1)
    if abs(theta) < 1e-9:
        raise _ParameterError(f"theta {theta!r} changes nothing")
    limit = int(image.size * gamma / 2)
    if iterations > limit:
        yield f"iterations {iterations}, of which gamma {gamma} of the pixels allows {limit}"
    size, extreme = 255 * abs(theta), 255 if theta > 0 else 0
    change = (image - original) * np.sign(theta)
    moves = np.ceil((change - _ROUNDING) / size).clip(0)  # at least
    right = (change == 0) | (change > 0) & ((image == extreme) | (moves * size <= change + _ROUNDING))
    if wrong := int(np.count_nonzero(~right)):
        yield f"{wrong} of its pixels changed otherwise than by theta {theta}"
    needed = int(moves.sum())
    if needed > 2 * iterations or (abs(theta) == 1 and needed != 2 * iterations):
        yield f"iterations {iterations} of two pixels each, for {needed} changes of pixels"


def _tgsm_faults(
    iterations: int, image: Gray, original: Gray, parameters: object, unit: float
) -> Iterator[str]:
    """Each step moves a pixel by epsilon units up, down or not at all, and never out of its range."""
    steps, epsilon = (
        _number(parameters, "steps", 0, _MOST_STEPS),
        _number(parameters, "epsilon", 0, _MOST_EPSILON),
    )
    if iterations != steps:
        yield f"iterations {iterations}, of which the attack makes {steps}"
    size = 255 * epsilon * unit
    farthest = float(np.abs(image - original).max())
    if farthest > steps * size + _ROUNDING:
        yield f"linf {farthest / 255:.6f}, in {steps} steps of {size / 255:.6f}"
    elif size > 2 * _ROUNDING:  # else every value is near a whole number of steps
        reaches_0, reaches_255 = original <= steps * size, 255 - original <= steps * size
        right = _whole(image - original, size) | reaches_0 & _whole(image, size)
        right |= reaches_255 & _whole(255 - image, size)
        if wrong := int(np.count_nonzero(~right)):
            yield f"{wrong} of its pixels changed by no whole number of steps of {size / 255:.6f}"


# By attack: from iterations, stimulus and original (H, W) in 0 to 255, parameters and the pixels in a unit of
# epsilon, in what the attack cannot have made the stimulus. Raises _ParameterError.
_FAULTS: dict[str, Callable[[int, Gray, Gray, object, float], Iterator[str]]] = {
    "jsma": _jsma_faults,
    "tgsm": _tgsm_faults,
}


def _number(parameters: object, key: str, low: float, high: float) -> float:
    value = parameters.get(key) if isinstance(parameters, dict) else None
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        raise _ParameterError(f"{key} {value!r} is not a number from {low:,} to {high:,}")
    return value


def _whole(change: Gray, size: float) -> npt.NDArray[np.bool_]:
    """Where a change is a whole number of steps of this size, up to rounding."""
    return np.asarray(np.abs(change - np.rint(change / size) * size) <= _ROUNDING)
