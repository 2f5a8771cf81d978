"""The evaluation's pictures: adversarial examples in grids and over the steps, and input gradients."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ml.evidence import NAMES
from ml.figures import FAILED, ORIGINAL, SHORT, WIDTH, cells
from ml.measurements import LABELS
from ml.pictures import Examples, InputGradients, Path, Pixels

_GAP = 0.06  # between pictures, as a share of one
_GRAY: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 1, "interpolation": "nearest"}


def jsma(made: Mapping[str, Examples], labels: Sequence[str]) -> Figure:
    """The first image of each of the first two labels, as JSMA on each model left it, towards every label."""
    rows = 2
    figure = Figure(figsize=(WIDTH, 0.5 + len(made) * (rows * WIDTH / (len(labels) + 1) + 0.35)))
    figure.set_layout_engine("constrained")
    for ax, (model, examples) in zip(np.atleast_1d(figure.subplots(len(made), 1)), made.items(), strict=True):
        _grid(ax, examples, range(rows), labels)
        ax.set_title(f"made for {NAMES[model]}")
    return figure


def tgsm_grids(paths: Mapping[str, Path], labels: Sequence[str]) -> Figure:
    """Iterated TGSM on each model: sources in rows, targets in columns."""
    figure, axes = cells(len(paths) + 1, 3.35)
    for ax, (model, path) in zip(axes, paths.items(), strict=False):
        _grid(ax, path.last, range(len(labels)), labels)
        ax.set_title(f"made for {NAMES[model]}")
    legend = axes[-1]
    legend.axis("off")
    legend.set_xlim(0, 10)
    legend.set_ylim(10, 0)
    for y, color, words in (
        (4, ORIGINAL, "the unmodified image"),
        (5.2, FAILED, "answered with another label\nthan the target"),
    ):
        legend.add_patch(Rectangle((0, y - 0.3), 0.6, 0.6, fill=False, edgecolor=color, lw=1.6))
        legend.text(1, y, words, va="center")
    return figure


def tgsm_path(paths: Mapping[str, Path], labels: Sequence[str]) -> Figure:
    """One pair after each step, a row for each model, with the label that the model gives."""
    first = next(iter(paths.values()))
    pair, count = 0, len(first.steps)
    cell = (WIDTH - 1.3) / count
    figure = Figure(figsize=(WIDTH, len(paths) * (cell + 0.2) + 0.45), layout="constrained")
    axes = figure.subplots(len(paths), count, squeeze=False)
    target = first.last.targets[pair]
    for row, (model, path) in enumerate(paths.items()):
        for step, (ax, examples) in enumerate(zip(axes[row], path.steps, strict=True)):
            ax.imshow(_gray(examples.images[pair]), **_GRAY)
            _bare(ax)
            given = examples.predictions[pair]
            words = f"“{labels[given]}” ✓" if given == target else f"“{labels[given]}”"
            ax.set_xlabel(words, fontsize=8, labelpad=1)
            if not step:
                ax.set_ylabel(SHORT[model], rotation=0, ha="right", va="center", fontsize=8)
            if not row:
                title = f"{step} step{'s' * (step > 1)}" if step else "unmodified"
                ax.set_title(title, fontsize=7, loc="center")
    return figure


def input_gradients(shown: InputGradients, labels: Sequence[str]) -> Figure:
    """Images in rows; beside each, every model's gradient of the cross-entropy of the true label and of the next
    one, scaled by its own largest component: green raises the loss, purple lowers it."""
    models = tuple(shown.of_models)
    columns = 2 * len(models) + 1
    cell = WIDTH / (columns + 0.6)
    figure = Figure(figsize=(WIDTH, len(shown.images) * cell + 1.1), layout="constrained")
    axes = np.atleast_2d(figure.subplots(len(shown.images), columns))
    for row, image in enumerate(shown.images):
        axes[row, 0].imshow(_gray(image), **_GRAY)
        axes[row, 0].set_ylabel(labels[shown.labels[row]], rotation=0, ha="right", va="center")
        for block, label in enumerate(LABELS):
            for column, model in enumerate(models):
                ax = axes[row, 1 + block * len(models) + column]
                gradient = shown.of_models[model][label][row].sum(0)
                largest = float(np.abs(gradient).max())
                if largest:
                    ax.imshow(gradient / largest, cmap="PRGn", vmin=-1, vmax=1, interpolation="nearest")
                else:
                    ax.set_facecolor("#eeeeee")
                    ax.set_aspect("equal")
                    ax.text(0.5, 0.5, "0", ha="center", va="center", transform=ax.transAxes)
                if not row:
                    ax.set_title(SHORT[model], fontsize=6.5, rotation=60, loc="left", ha="left")
    for ax in axes.flat:
        _bare(ax)
    for block, words in enumerate(("of the true label", "of label y + 1")):
        middle = axes[-1, 1 + block * len(models) + len(models) // 2]
        middle.set_xlabel(words, fontsize=9, labelpad=6)
    return figure


def _grid(ax: Axes, examples: Examples, rows: Sequence[int], labels: Sequence[str]) -> None:
    """The first source image of each label in `rows`, towards every label; unmodified at its own."""
    size = 1 - _GAP
    for row in rows:
        mine = np.flatnonzero(examples.labels == row)
        if not len(mine):
            continue
        mine = mine[examples.sources[mine] == examples.sources[mine[0]]]
        pictures = {int(examples.targets[i]): examples.images[i] for i in mine}
        pictures[row] = examples.originals[mine[0]]
        failed = {int(examples.targets[i]) for i in mine if not examples.success[i]}
        for column, picture in pictures.items():
            box = (column, column + size, row + size, row)
            ax.imshow(_gray(picture), extent=box, **_GRAY)
            color = ORIGINAL if column == row else FAILED if column in failed else None
            if color:
                ax.add_patch(Rectangle((column, row), size, size, fill=False, edgecolor=color, lw=1.6))
    ax.set_xlim(-_GAP, len(labels))
    ax.set_ylim(len(rows), -_GAP)
    ax.set_aspect("equal")
    ax.set_xticks(np.arange(len(labels)) + size / 2, labels, fontsize=7)
    ax.set_yticks(np.array([*rows]) + size / 2, [labels[row] for row in rows], fontsize=7)
    ax.tick_params(length=0, pad=1)
    ax.spines[:].set_visible(False)


def _gray(image: Pixels) -> npt.NDArray[np.float32]:
    """(H, W), the mean of the channels of (C, H, W)."""
    return np.asarray(image.mean(0))


def _bare(ax: Axes) -> None:
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_linewidth(0.3)
