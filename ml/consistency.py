"""Whether what a stimulus pack says of its images is so: what can be measured without its models and its data.

Each function is one check; `checks` is all of them. `pixels` has the (H, W) pixels of every image by hash.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np
import numpy.typing as npt

from ml.manifest import CleanImage, Contents, Stimulus
from ml.pixels import Pixels, grid_cells, grid_pixels
from ml.untrusted import PackError, shown

ROUNDING = 1e-6  # l2, linf and probabilities have six decimals


@dataclass(frozen=True)
class Check:
    """What was checked, of how many, with one line for each difference found."""

    what: str
    count: int
    differences: list[str]


def checks(read: Contents, pixels: Mapping[str, Pixels]) -> list[Check]:
    """All checks of this module."""
    return [
        check_pairs(read),
        check_unmodified(read),
        check_measurements(read, pixels),
        check_grids(read, pixels),
        check_rates(read),
    ]


def images(read: Contents) -> list[Stimulus | CleanImage]:
    """All images but the grids."""
    return [*read.stimuli, *read.unmodified]


def check_pairs(read: Contents) -> Check:
    """Whether each pair of source image and target has a stimulus for every model."""
    pairs: dict[tuple[int, str], set[str]] = {}
    for s in read.stimuli:
        pairs.setdefault((s.source_index, s.target_label), set()).add(s.model)
    differences = [
        f"{model}, source_index {source} to {target}: there is no stimulus"
        for (source, target), models in pairs.items()
        for model in read.models
        if model not in models
    ]
    return Check(f"pairs: a stimulus for each of {len(read.models)} models", len(pairs), differences)


def check_unmodified(read: Contents) -> Check:
    """Whether stimuli and unmodified images agree on their labels, each stimulus has its original and each original
    a stimulus, and no unmodified image comes twice. A pack may also be without originals."""
    differences = []
    labels = {image.source_index: image.source_label for image in images(read)}  # an original's counts
    for image in images(read):
        if image.source_label != labels[image.source_index]:
            differences.append(
                f"{image}: source_label {image.source_label}, elsewhere {labels[image.source_index]}"
            )
    sources = {s.source_index for s in read.stimuli}
    originals = {image.source_index for image in read.originals}
    if read.originals:
        differences += [f"source_index {index}: has no original" for index in sorted(sources - originals)]
    for index in sorted(originals - sources):
        differences.append(f"source_index {index}: is an original of no stimulus")
    for image in read.clean:
        if image.source_index in sources:
            differences.append(f"{image}: is clean, but the source of a stimulus")
    first: dict[str, CleanImage] = {}
    for image in read.unmodified:
        other = first.setdefault(image.sha256, image)
        if other is not image:
            differences.append(f"{image}: is the same image as source_index {other.source_index}")
    what = "originals and clean images: labels, originals of stimuli, none twice"
    return Check(what, len(read.unmodified), differences)


def check_measurements(read: Contents, pixels: Mapping[str, Pixels]) -> Check:
    """Whether each stimulus is as far from its original as its record says, and what a stimulus can be at all."""
    originals = {image.source_index: pixels[image.sha256] for image in read.originals}
    digests = {image.sha256: _digest(pixels[image.sha256]) for image in images(read)}
    unmodified = {digests[image.sha256]: image for image in read.unmodified}
    answers: dict[tuple[str, bytes], str] = {}
    differences = []
    for s in read.stimuli:
        image, original = pixels[s.sha256], originals.get(s.source_index)
        wrong = _impossible(s, image) if original is None else _wrong_distances(s, image, original)
        differences += [f"{s}: {fault}" for fault in wrong]
        if s.target_probability < 1 / len(read.labels) - ROUNDING:
            differences.append(
                f"{s}: target_probability {s.target_probability} is not the largest of {len(read.labels)}"
            )
        found = unmodified.get(digests[s.sha256])
        if found and found.source_index != s.source_index:
            differences.append(f"{s}: is the image of {found}")
        answer = answers.setdefault((s.model, digests[s.sha256]), s.prediction)
        if answer != s.prediction:
            differences.append(f"{s}: the same image has the prediction {answer} elsewhere")
    measurable = sum(s.source_index in originals for s in read.stimuli)
    without = len(read.stimuli) - measurable
    what = "stimuli: pixels_changed, l2, linf from the original"
    return Check(what + f" ({without} without one)" * (without > 0), measurable, differences)


def _digest(pixels: Pixels) -> bytes:
    """Of the pixels, however their PNG is written; copies of them would fill the memory."""
    return hashlib.sha256(pixels.tobytes()).digest()


def _impossible(s: Stimulus, image: Pixels) -> Iterator[str]:
    """What no image of this size has, whatever its original."""
    if not 1 <= s.pixels_changed <= image.size:
        yield f"pixels_changed {s.pixels_changed} of {image.size}"
    if not 0 < s.linf <= 1:
        yield f"linf {s.linf} is not in (0, 1]"
    most = (s.linf + ROUNDING) * s.pixels_changed**0.5
    if not s.linf - ROUNDING <= s.l2 <= most + ROUNDING:
        yield f"l2 {s.l2} does not go with linf {s.linf} and pixels_changed {s.pixels_changed}"


def _wrong_distances(s: Stimulus, image: Pixels, original: Pixels) -> Iterator[str]:
    change = _to_float(image) - _to_float(original)
    changed = int(np.count_nonzero(image != original))
    if changed != s.pixels_changed:
        yield f"pixels_changed {s.pixels_changed}, measured {changed}"
    if changed == 0:
        yield "is its original, unchanged"
    distances = {"l2": float(np.linalg.norm(change)), "linf": float(np.abs(change).max())}
    for key, measured in distances.items():
        if abs(measured - getattr(s, key)) > ROUNDING:
            yield f"{key} {getattr(s, key)}, measured {measured:.6f}"


def _to_float(pixels: Pixels) -> npt.NDArray[np.float64]:
    """8-bit pixels in [0, 1], rounded to float32 as the attacks have them (`to_float` of `ml/datasets.py`)."""
    return (pixels.astype(np.float32) / np.float32(255)).astype(np.float64)


def check_grids(read: Contents, pixels: Mapping[str, Pixels]) -> Check:
    """Whether the grids show the stimuli.

    A grid's row shows the first image of a label that was attacked. Where no pair of that image came into the pack,
    the pack cannot say what the row should be: it is passed over, but its diagonal must be one image in all grids,
    and none that the pack holds otherwise.
    """
    differences: list[str] = []
    grids = dict(_grids(read, pixels, differences))
    first: dict[str, int] = {}
    for s in read.stimuli:
        first[s.source_label] = min(s.source_index, first.get(s.source_label, s.source_index))
    originals = {image.source_index: _digest(pixels[image.sha256]) for image in read.originals}
    held = {_digest(pixels[image.sha256]) for image in images(read)}
    stimuli = {(s.model, s.source_index, s.target_label): pixels[s.sha256] for s in read.stimuli}
    compared, passed_over = 0, 0
    for row, label in enumerate(read.labels):
        diagonal = {model: _digest(cells[row, row]) for model, cells in grids.items()}
        original = originals.get(first.get(label, -1))
        known = original in diagonal.values()
        right = original if known else next(iter(diagonal.values()), None)
        for model, cell in diagonal.items():
            if cell != right or (not known and cell in held):
                differences.append(f"grid of {model}, row {label}: the diagonal is not the original")
        if not known:
            passed_over += 1
            continue
        for model, cells in grids.items():
            compared += 1
            for column, target in enumerate(read.labels):
                stimulus = stimuli.get((model, first[label], target))
                compared += stimulus is not None
                if stimulus is not None and not np.array_equal(cells[row, column], stimulus):
                    differences.append(
                        f"grid of {model}, row {label}: the cell of {target} is not the stimulus"
                    )
    what = f"cells of {len(read.grids)} grids: as the images they show"
    return Check(what + f" (rows passed over: {passed_over})" * (passed_over > 0), compared, differences)


def _grids(
    read: Contents, pixels: Mapping[str, Pixels], differences: list[str]
) -> Iterator[tuple[str, Pixels]]:
    """The cells (K, K, H, W) of each grid by model; what is wrong with a whole grid is added to `differences`."""
    k, size = len(read.labels), pixels[read.stimuli[0].sha256].shape
    for model, sha256 in read.grids.items():
        grid = pixels[sha256]
        try:
            cells = grid_cells(grid, k, k)
        except PackError as error:
            differences.append(f"grid of {model}: {error}")
            continue
        if cells.shape[2:] != size:
            shape = f"{cells.shape[3]} x {cells.shape[2]}"
            differences.append(f"grid of {model}: cells {shape}, images {size[1]} x {size[0]} pixels")
            continue
        if not np.array_equal(grid_pixels(cells), grid):
            differences.append(f"grid of {model}: the lines between its cells are not as they should be")
        yield model, cells


def check_rates(read: Contents) -> Check:
    """Whether each model's success rate before the filter, where it is stated, is a rate, and of no fewer pairs
    than the pack has."""
    differences, stated = [], 0
    for record in read.manifest["models"]:
        reached = record.get("success_rate_before_filter")
        count, n, rate = (
            reached.get(key) if isinstance(reached, dict) else None for key in ("count", "n", "rate")
        )
        if not (_is_number(count) and _is_number(n)):
            continue
        stated += 1
        pairs = sum(s.model == record["name"] for s in read.stimuli)
        fault = None
        if not (count == int(count) and n == int(n) and 0 <= count <= n and n > 0):
            fault = f"{shown(count)} of {shown(n)} are no counts"
        elif _is_number(rate) and abs(rate - count / n) > ROUNDING:
            fault = f"{count} of {n} are not the rate {shown(rate)}"
        elif count < pairs:
            fault = f"{count} of {n} are fewer than the pack's {pairs} pairs"
        if fault:
            differences.append(f"{record['name']}: success_rate_before_filter: {fault}")
    return Check("success rates: of no fewer pairs than there are", stated, differences)


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
