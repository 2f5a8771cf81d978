"""Asks the models of a stimulus pack again what they see in its images."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from ml import checkpoints as checkpoint_files
from ml import train
from ml.checkpoints import CheckpointError, Trained
from ml.datasets import Dataset
from ml.pack import CleanImage, Pack, Pixels, Stimulus

TOLERANCE = 1e-3  # of target_probability: another processor rounds differently

_CHUNK = 1000  # images that a network is shown at once


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
    elif record.get("training") != config:
        yield f"{model}: its training is not the configuration in its checkpoint"
    if config.get("dataset") != read.dataset.get("name"):
        yield f"{model}: its checkpoint was trained on the data set {config.get('dataset')!r}"
    accuracy = round(trained.clean_accuracy, 6)
    if record.get("clean_accuracy") != accuracy:
        yield f"{model}: clean_accuracy {record.get('clean_accuracy')!r}, in its checkpoint {accuracy}"


def _probabilities(trained: Trained, images: npt.NDArray[np.uint8], what: str) -> npt.NDArray[np.float64]:
    """The softmax (N, K) of a network's answers to 8-bit images (N, C, H, W)."""
    parts = []
    with tqdm(total=len(images), desc=f"re-classify: {what}", unit="image", delay=2, leave=False) as bar:
        for start in range(0, len(images), _CHUNK):
            logits = train.predict(trained.network, images[start : start + _CHUNK]).double()
            parts.append(logits.softmax(1).numpy())
            bar.update(len(logits))
    return np.concatenate(parts)
