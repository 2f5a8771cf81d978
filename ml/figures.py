"""The evaluation's charts as PNGs: readable in print, on white, by color-blind readers; intervals are drawn.

Pictures of examples are in `picture_figures`. The same numbers give the same bytes.
"""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image, ImageColor

from ml import intervals
from ml.cost import Cost
from ml.evidence import NAMES, PUBLISHED
from ml.measurements import FLOOR, LABELS, OVERLAP_EPSILON, Floats, Gradients, Overlap, Transfer
from ml.pictures import Path

# Okabe and Ito's colors, each with a marker and a dash of its own.
STYLES: dict[str, tuple[str, str, Any]] = {
    "undefended": ("#d55e00", "o", "-"),
    "distilled": ("#0072b2", "s", (0, (5, 1.5))),
    "adversarially_trained": ("#cc79a7", "^", (0, (3, 1, 1, 1))),
    "gradient_regularized": ("#009e73", "D", "-"),
    "double_backprop": ("#e69f00", "v", (0, (4, 1))),
    "distilled_double_backprop": ("#56b4e9", "P", (0, (1, 1))),
    "entropy_regularized": ("#000000", "X", (0, (1, 1.5))),
    "adversarial_double_backprop": ("#7f7f7f", "*", (0, (5, 1, 1, 1))),
}
# Where a name must stand over a column.
SHORT = {
    "undefended": "undefended",
    "distilled": "distilled",
    "adversarially_trained": "adversarially\ntrained",
    "gradient_regularized": "gradient-\nregularized",
    "double_backprop": "double\nbackprop",
    "distilled_double_backprop": "distilled +\ndouble b.",
    "entropy_regularized": "entropy-\npenalized",
    "adversarial_double_backprop": "adversarial +\ndouble b.",
}
ORIGINAL, FAILED = "#56b4e9", "#d55e00"  # frames of pictures
WIDTH = 9.6  # inches
_DPI = 112
_MEANT = ("#ffffff", "#000000", *dict.fromkeys([color for color, _, _ in STYLES.values()]), ORIGINAL, FAILED)
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.linewidth": 0.7,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


def png(draw: Callable[[], Figure], colors: int = 56, grays: int = 0) -> bytes:
    """The figure that `draw` makes, in the house style, as a PNG of few colors: reports are kept in version
    control, and noise compresses badly. Besides those with a meaning these are the `colors` that serve the figure
    best or, where it is of pictures, so many shades of gray."""
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **_STYLE, "backend": "agg"}):
        raw = io.BytesIO()
        draw().savefig(raw, format="png", dpi=_DPI, metadata={"Software": None})
    with Image.open(raw) as image:
        full = image.convert("RGB")
    meant = [
        ImageColor.getrgb(color)[:3] for color in _MEANT
    ]  # no line may take the color of a band around it
    if grays:
        chosen = np.linspace(0, 255, grays).round().astype(int)[:, None].repeat(3, 1)
    else:
        best = full.quantize(colors, dither=Image.Dither.NONE).getpalette("RGB") or []
        chosen = np.reshape(best, (-1, 3))
    palette = np.concatenate([meant, chosen])  # (P, 3)
    codes: npt.NDArray[np.int64] = np.asarray(full, dtype=np.int64) @ np.array([1 << 16, 1 << 8, 1])  # (H, W)
    unique, where = np.unique(codes, return_inverse=True)  # (U,), (H, W)
    found = np.stack([unique >> 16, unique >> 8 & 255, unique & 255], 1)  # (U, 3)
    distances = (palette**2.0).sum(
        1
    ) - 2.0 * found @ palette.T  # (U, P), squared, but for each color's own square
    small = Image.fromarray(distances.argmin(1).astype(np.uint8)[where].reshape(codes.shape))
    small.putpalette(palette.astype(np.uint8).tobytes())
    out = io.BytesIO()
    small.save(out, "PNG", optimize=True)
    return out.getvalue()


def cells(count: int, height: float, columns: int = 3) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels in rows of `columns`, each so many inches high."""
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(WIDTH, rows * height), layout="constrained")
    axes = [figure.add_subplot(rows, columns, index + 1) for index in range(count)]
    return figure, axes


def curves(transfer: Transfer, attack: str, dataset: str) -> Figure:
    """A panel for each model that examples are made for, in it the accuracy of every model by epsilon."""
    figure, axes = cells(len(transfer.models) + 1, 2.5)
    for ax, made_for in zip(axes, transfer.models, strict=False):
        for evaluated in transfer.models:
            color, marker, dash = STYLES[evaluated]
            found = [
                intervals.share(transfer.answers(attack, made_for, evaluated, epsilon))
                for epsilon in transfer.epsilons
            ]
            own = evaluated == made_for
            ax.fill_between(
                transfer.epsilons,
                [e.low for e in found],
                [e.high for e in found],
                color=color,
                alpha=0.18,
                lw=0,
            )
            ax.plot(
                transfer.epsilons,
                [e.value for e in found],
                color=color,
                linestyle=dash,
                marker=marker,
                markersize=5 if own else 3.5,
                linewidth=2.6 if own else 1.2,
            )
            published = (
                PUBLISHED.get((made_for, evaluated)) if (attack, dataset) == ("fgsm", "mnist") else None
            )
            if published:
                ax.plot([*published], [*published.values()], "x", color=color, ms=8, mew=2.2, zorder=3)
        ax.set_title(f"made for {NAMES[made_for]}")
        ax.set_ylim(-0.02, 1.02)
        ax.set_yticks([0, 0.5, 1], ["0", "50", "100 %"])
        ax.grid(axis="y", color="#dddddd", lw=0.6)
        ax.set_xticks(transfer.epsilons)
        ax.set_xlabel("epsilon")
    handles = _handles(transfer.models)
    handles.append(Line2D([], [], color="#555555", linewidth=2.6, label="thick: its own examples"))
    if (attack, dataset) == ("fgsm", "mnist"):
        handles.append(
            Line2D([], [], color="#555555", linestyle="", marker="x", ms=8, mew=2.2, label="published")
        )
    axes[-1].axis("off")
    axes[-1].legend(handles=handles, loc="center left", title="accuracy of", alignment="left")
    return figure


def gradient_norms(gradients: Gradients) -> Figure:
    """Distributions of the norms' logarithms, one row a model, for the true label and for the one after it."""
    models = tuple(gradients.norms)
    logs = {m: {label: np.log10(gradients.norms[m][label]) for label in LABELS} for m in models}
    highest = max(float(values.max()) for of in logs.values() for values in of.values())
    lowest = math.log10(FLOOR)
    edges = np.arange(lowest - 0.5, highest + 1, 0.5)
    figure = Figure(figsize=(WIDTH, 0.75 * len(models) + 0.8), layout="constrained")
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    for ax, label, name in zip(axes, LABELS, ("true label", "label y + 1"), strict=True):
        _ridges(ax, [logs[m][label] for m in models], models, edges)
        for row, model in enumerate(models):
            gone = gradients.vanished[model][label].mean()
            if gone:
                ax.text(lowest + 0.8, -row + 0.45, f"{100 * gone:.1f} % exactly 0", color="#333333")
        ax.set_title(f"Gradient of the cross-entropy of the {name}")
        ticks = np.arange(lowest, highest + 1, 5)
        ax.set_xticks(ticks, [rf"$10^{{{tick:.0f}}}$" if tick else "1" for tick in ticks])
        ax.set_xlabel("l2 norm (line: median)")
    return figure


def log_probabilities(gradients: Gradients) -> Figure:
    """Distributions of predicted probabilities' logarithms, of the true label, the one after it, and all labels."""
    models = tuple(gradients.log_probabilities)
    figure = Figure(figsize=(WIDTH, 0.75 * len(models) + 0.8), layout="constrained")
    axes = figure.subplots(1, 3, sharex=True, sharey=True)
    base = math.log(10)
    columns = [
        ("true label", [gradients.log_probability(m, "true") / base for m in models]),
        ("label y + 1", [gradients.log_probability(m, "next") / base for m in models]),
        ("all labels", [gradients.log_probabilities[m].ravel() / base for m in models]),
    ]
    lowest = min(float(values.min()) for values in columns[2][1])
    # Equal steps of the symmetric logarithm that the axis has, from 0 to the lowest.
    edges = -_unfold(np.linspace(_fold(-lowest) * 1.02, 0, 50))
    for ax, (name, values) in zip(axes, columns, strict=True):
        _ridges(ax, values, models, edges)
        ax.set_title(name)
        ax.set_xscale("symlog", linthresh=0.1)
        ticks = [t for t in (-1000.0, -100.0, -10.0, -1.0, -0.1, 0.0) if t >= lowest * 1.02]
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.set_xlabel("log10 of the probability (line: median)")
        ax.minorticks_off()
    return figure


def overlap(overlaps: Sequence[Overlap]) -> Figure:
    """Of the examples made for each model: how far any two models get the same ones wrong."""
    figure, axes = cells(len(overlaps) + 1, 2.9)
    for ax, found in zip(axes, overlaps, strict=False):
        models = found.models
        for row, a in enumerate(models):
            for column, b in enumerate(models):
                same = found.wrong[row].mean() if a == b else found.shared(a, b)
                shade = "#eeeeee" if a == b or same is None else matplotlib.colormaps["Blues"](0.9 * same)
                ax.fill_between([column, column + 1], row, row + 1, color=shade, lw=0)
                text = "–" if same is None else f"{100 * same:.0f}"
                dark = a != b and same is not None and same > 0.6
                ax.text(
                    column + 0.5,
                    row + 0.5,
                    text,
                    ha="center",
                    va="center",
                    color="white" if dark else "black",
                )
        ax.set_title(f"made for {NAMES[found.made_for]}", fontsize=7.5)
        ax.set_xlim(0, len(models))
        ax.set_ylim(len(models), 0)
        middle = np.arange(len(models)) + 0.5
        ax.set_xticks(middle, [SHORT[m] for m in models], rotation=90, fontsize=6.5)
        ax.set_yticks(middle, [SHORT[m] for m in models], fontsize=6.5)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
    axes[-1].axis("off")
    axes[-1].text(
        0,
        0.5,
        f"FGSM, epsilon {OVERLAP_EPSILON}, in %.\n\nBlue: of the examples that\neither of the two gets wrong,\n"
        "those that both do.\n\nGray: of all examples, those\nthat this model gets wrong.",
        va="center",
        transform=axes[-1].transAxes,
    )
    return figure


def steps(paths: Mapping[str, Path]) -> Figure:
    """The share of iterated-TGSM pairs that have reached their target, by step."""
    figure = Figure(figsize=(WIDTH, 2.8), layout="constrained")
    ax, beside = figure.subplots(1, 2, width_ratios=[2, 1])
    for model, path in paths.items():
        color, marker, dash = STYLES[model]
        found = [intervals.share(examples.success) for examples in path.steps]
        x = np.arange(len(found))
        ax.fill_between(x, [e.low for e in found], [e.high for e in found], color=color, alpha=0.18, lw=0)
        ax.plot(x, [e.value for e in found], color=color, linestyle=dash, marker=marker, ms=4, lw=1.5)
    ax.set_ylim(-0.02, 1.02)
    ax.set_yticks([0, 0.5, 1], ["0", "50", "100 %"])
    ax.set_xticks(x)
    ax.set_xlabel("steps")
    ax.set_title("target reached")
    ax.grid(axis="y", color="#dddddd", lw=0.6)
    beside.axis("off")
    beside.legend(handles=_handles(tuple(paths)), loc="center left", title="made for", alignment="left")
    return figure


def cost(measured: Cost, models: Sequence[str]) -> Figure:
    """What each defense's training costs, in undefended trainings."""
    figure = Figure(figsize=(WIDTH, 0.34 * len(models) + 0.9), layout="constrained")
    ax = figure.subplots()
    for row, model in enumerate(models):
        ratio = measured.ratio(model)
        color, marker, _ = STYLES[model]
        ax.plot([ratio.low, ratio.high], [-row, -row], color=color, lw=2.5, solid_capstyle="butt")
        ax.plot(ratio.value, -row, marker, color=color, ms=7)
        place: Any = {"xytext": (8, 0), "textcoords": "offset points", "va": "center"}
        ax.annotate(f"{ratio.value:.2f}", (ratio.high, -row), **place)
    for x, words, side in (
        (2, "paper, distillation: ", "right"),
        (3, " paper, penalties: nearly this", "left"),
    ):
        ax.axvline(x, color="#888888", lw=0.8, ls=":")
        ax.text(x, 0.55, words, ha=side, va="bottom", fontsize=7, color="#555555")
    ax.set_yticks(-np.arange(len(models)), [NAMES[model] for model in models])
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(-len(models) + 0.4, 0.6)
    ax.set_xlim(left=0)
    ax.set_xlabel("time of training, in trainings of the undefended model")
    return figure


def _handles(models: Sequence[str]) -> list[Line2D]:
    return [
        Line2D([], [], color=color, marker=marker, linestyle=dash, ms=5, lw=1.5, label=NAMES[model])
        for model in models
        for color, marker, dash in [STYLES[model]]
    ]


def _ridges(ax: Axes, values: Sequence[Floats], models: Sequence[str], edges: Floats) -> None:
    """A histogram for each model above its name, each as high as its fullest bin, and its median."""
    for row, (of_model, model) in enumerate(zip(values, models, strict=True)):
        counts, _ = np.histogram(of_model.clip(edges[0], edges[-1]), edges)
        height = 0.8 * counts / counts.max()
        ax.stairs(height - row, edges, baseline=-row, fill=True, color=STYLES[model][0], alpha=0.75)
        middle = float(np.median(of_model))
        ax.plot([middle, middle], [-row, -row + 0.86], color="black", lw=1.2)
        ax.axhline(-row, color="#bbbbbb", lw=0.6, zorder=0)
    ax.set_yticks(0.35 - np.arange(len(models)), [SHORT[model] for model in models])
    ax.set_ylim(0.95 - len(models), 0.95)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)


def _fold(x: Any) -> Any:
    """matplotlib's symmetric logarithm with a linear threshold of 0.1, of what is not negative."""
    x = np.asarray(x, dtype=np.float64)
    return np.where(x < 0.1, x / 0.1, 1 + np.log10(np.maximum(x, 0.1) / 0.1))


def _unfold(y: Floats) -> Floats:
    return np.where(y < 1, 0.1 * y, 0.1 * 10 ** (y - 1))
