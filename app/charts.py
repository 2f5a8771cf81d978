"""The figures of a study's views: parts, thirds of the session, digits, pairs and times; see `app.figures`."""

import math
from collections.abc import Iterable, Sequence
from decimal import ROUND_HALF_UP, Decimal
from typing import TYPE_CHECKING, Any

from app.figures import (
    COLORS,
    INK,
    NO_ANSWERS,
    OTHER,
    SIZE,
    SMALL,
    WIDTH,
    apart,
    canvas,
    drawn,
    finish,
    headed,
    in_words,
    named,
    names_width,
    note,
    on,
    panel,
    percent_axis,
    shown,
    text_width,
    wrapped,
    write,
)
from app.outcomes import COMPONENTS
from app.printed import percent
from app.stats import Rate
from app.views import QUANTILES, THIRDS, Times

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PARTS = {  # fill; apart in lightness, for gray print, and the lightest is hatched
    "target_first": "#7a2500",
    "target_second": "#d55e00",
    "none": "#fbc48a",
    "source": "#56b4e9",
    "other": "#e4e4e4",
}
LEGEND = ("target_first", "source", "target_second", "other", "none")  # column by column
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)  # seconds
AXES = ((25, 5), (50, 10), (75, 25), (100, 25))  # percent: where an axis ends, and its steps
TIMES_KEY = "dot: median; thick line: 25 to 75 % of the answers; thin line: 10 to 90 %"
ROWS, COLUMNS = "← original label", "network’s answer →"
TINY = 9
UPRIGHT = {"rotation": 90, "rotation_mode": "anchor"}


@drawn
def components_figure(components: dict[str, dict[str, int]], title: str) -> str:
    """What every answer was: one bar a model, split into COMPONENTS, in percent of the model's answers."""
    from matplotlib.patches import Patch

    names = list(components)
    left, row, bar = names_width(names) + 14, 44, 34
    width = WIDTH - left - 20
    top = 54 + bar / 2
    bottom = top + row * max(len(names) - 1, 0) + bar / 2 + 8
    figure = canvas(bottom + 22)
    figure.legend(
        [
            Patch(facecolor=PARTS[part], hatch=_hatch(part), linewidth=0, label=COMPONENTS[part])
            for part in LEGEND
        ],
        [COMPONENTS[part] for part in LEGEND],
        loc="upper left",
        bbox_to_anchor=(0, 1),
        ncols=3,
    )
    ax = panel(figure, left, top - bar / 2 - 4, width, bottom - top + bar / 2 + 4)
    ax.set_ylim(max(len(names) - 1, 0) + (bar / 2 + 8) / row, -(bar / 2 + 4) / row)
    named(ax, names)
    percent_axis(ax)
    for y, counts in enumerate(components.values()):
        total, before = sum(counts.values()), 0
        if not total:
            note(ax, 0, y, NO_ANSWERS, 6, ha="left", size=SMALL)
        for part in COMPONENTS:
            n = counts.get(part, 0)
            if not n:
                continue
            at, size = 100 * before / total, width * n / total
            before += n
            wide = 100 * (n / total - (1 / width if size > 3 else 0))
            fill = PARTS[part]
            ax.barh(y, wide, bar / row, at, color=fill, hatch=_hatch(part), linewidth=0)
            share, center = f"{percent(n / total)} %", at + wide / 2
            room = max(text_width(share), text_width(str(n), SMALL)) + 4
            if room < size:
                if _hatch(part):
                    ax.barh(
                        y, 100 * room / width, 28 / row, center - 50 * room / width, color=fill, linewidth=0
                    )
                note(ax, center, y, share, dy=7, color=on(fill))
                note(ax, center, y, str(n), dy=-8, color=on(fill), size=SMALL)
    sentences = []
    for name, counts in components.items():
        total = sum(counts.values())
        if not total:
            sentences.append(f"{_spaced(name)}: {NO_ANSWERS}.")
            continue
        parts = ((meaning, counts.get(part, 0)) for part, meaning in COMPONENTS.items())
        values = [f"{meaning} {n} ({percent(n / total)} %)" for meaning, n in parts]
        sentences.append(f"{_spaced(name)}: of {total} answers {', '.join(values)}.")
    return finish(figure, title, _sentences(sentences))


@drawn
def thirds_figure(thirds: dict[str, dict[str, list[Rate]]], outcome: str, heading: str, title: str) -> str:
    """The rate of `outcome` in each of THIRDS, one line a model, with intervals side by side."""
    rates = {name: by_outcome.get(outcome, []) for name, by_outcome in thirds.items()}
    found = {name: [(i, r) for i, r in enumerate(map(shown, of)) if r] for name, of in rates.items()}
    highest = max((high for of in found.values() for _, (_, _, high) in of), default=1)
    ceiling, step = next(axis for axis in AXES if axis[0] >= 100 * highest or axis is AXES[-1])
    said = [f"{percent(of[-1][1][0])} %" if of else NO_ANSWERS for of in found.values()]
    value = max(map(text_width, said), default=0)
    left, top, bottom = 44, 34, 250
    width = WIDTH - names_width(list(rates)) - value - 34 - left
    figure = canvas(bottom + 28)
    ax = panel(figure, left, top, width, bottom - top)
    ax.set(xlim=(0, 3), ylim=(0, ceiling))
    ax.yaxis.set_visible(True)
    headed(ax, heading, WIDTH, 26)
    ticks = range(0, ceiling + 1, step)
    ax.set_yticks(ticks, [f"{tick}" + (" %" if tick == ceiling else "") for tick in ticks])
    ax.set_xticks([0.5, 1.5, 2.5], THIRDS, size=SIZE)
    ax.tick_params(axis="x", pad=10)
    ax.grid(axis="y", clip_on=False)
    line = ceiling / (bottom - top)  # what one unit of height is in percent
    last = [100 * of[-1][1][0] if of else 0 for of in found.values()]
    places = apart(last[::-1], 15 * line, 0, ceiling)[::-1]  # of equals the first is the highest
    for k, ((name, of), place) in enumerate(zip(found.items(), places, strict=True)):
        color = COLORS.get(name, OTHER)
        shift = 0.5 + 12 * 3 / width * (k - (len(found) - 1) / 2)
        ys = [100 * r[0] if r else math.nan for r in map(shown, rates[name])]
        ax.plot([i + shift for i in range(len(ys))], ys, "o-", color=color, clip_on=False)
        for i, (_, low, high) in of:
            ends = (100 * low, 100 * high)
            ax.vlines(i + shift, *ends, colors=color, linewidth=1.5, capstyle="round", clip_on=False)
        if of:
            ax.annotate(
                "",
                (of[-1][0] + shift, ys[of[-1][0]]),
                (3 + 6 * 3 / width, place),
                arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.75, "shrinkA": 0, "shrinkB": 7},
                annotation_clip=False,
            )
        note(ax, 3, place, said[k], 10 + value, ha="right")
        note(ax, 3, place, wrapped(name, WIDTH - left - width - 16 - value, 1)[0], 16 + value, ha="left")
    words = [f"{heading}, rate by third of the session."]
    words += [
        f"{_spaced(name)}: {in_words(dict(zip(THIRDS, of, strict=False)))}." for name, of in rates.items()
    ]
    return finish(figure, title, _sentences(words))


@drawn
def digits_figure(
    by_source: dict[str, dict[str, Rate]], by_target: dict[str, dict[str, Rate]], title: str
) -> str:
    """Rates by the original label and by the network's answer: two heat maps, rows are models."""
    names = list(by_source)
    columns = list(next(iter(by_source.values()), {}))
    left, gap = names_width(names) + 10, 20
    side_by_side = (WIDTH - left - gap) / 2 / max(1, len(columns)) >= 26
    width = (WIDTH - left - gap) / 2 if side_by_side else WIDTH - left
    cell, height = width / max(1, len(columns)), 34
    above = 22 + _header_height(columns, cell)
    each = above + height * len(names)
    figure = canvas(each * (1 if side_by_side else 2) + (0 if side_by_side else 20) + 34)
    words = []
    for i, (heading, rates) in enumerate(
        (("by original label", by_source), ("by the network’s answer", by_target))
    ):
        x0 = left + (width + gap if side_by_side and i else 0)
        y0 = above + (each + 20 if i and not side_by_side else 0)
        ax = _grid(figure, x0, y0, cell, height, columns, len(names))
        headed(ax, heading, width, above - 8)
        if not (side_by_side and i):
            named(ax, names, 10)
        found = {}
        for y, name in enumerate(names):
            for x, label in enumerate(columns):
                rate = rates.get(name, {}).get(label)
                if rate is None or rate.rate is None:
                    write(ax, x, y, "–", size=SIZE)
                else:
                    found[x, y] = rate.rate, rate.n
        fills = _heat(ax, {at: share for at, (share, _) in found.items()}, cell, height)
        for (x, y), (share, n) in found.items():
            for dy, said, most in ((-5, percent(share), SMALL), (8, f"n {n}", TINY)):
                size = min(most, (cell - 2) / text_width(said, 1))
                write(ax, x - 0.5 / cell, y + dy / height, said, size=size, color=on(fills[x, y]))
        words += [
            f"{_spaced(name)}, {heading}: "
            + ", ".join(
                f"{label} {percent(rate.rate)} % of {rate.n}"
                if rate.rate is not None
                else f"{label} {NO_ANSWERS}"
                for label, rate in rates.get(name, {}).items()
            )
            + "."
            for name in names
            if rates.get(name)
        ]
    _scale(figure, "percent of n answers; – no answers yet")
    return finish(figure, title, _sentences(words))


@drawn
def pairs_figure(pairs: dict[str, list[list[tuple[int, int]]]], labels: list[str], title: str) -> str:
    """The share of every original label (row) and network's answer (column): one heat map a model."""
    names, rows = list(pairs), [wrapped(label, 80, 1)[0] for label in labels]
    side = max((text_width(label, SMALL) for label in rows), default=0) + 6
    left, gap = side + 18, 22
    width = (WIDTH - gap) / 2 - left
    cell, height = width / max(1, len(labels)), 22
    above = 40 + _header_height(labels, cell)
    each = above + max(height * len(labels), text_width(ROWS, SMALL)) + 22
    counted = [f"{count}/{n}" for table in pairs.values() for row in table for count, n in row if n]
    written = max((text_width(said, TINY) for said in counted), default=0) <= cell - 2
    figure = canvas(each * math.ceil(len(names) / 2) + 18)
    words = []
    for k, (name, table) in enumerate(pairs.items()):
        x0, y0 = left + (k % 2) * (width + left + gap), each * (k // 2) + above
        ax = _grid(figure, x0, y0, cell, height, labels, len(labels))
        headed(ax, wrapped(name, width, 1)[0], width, above - 8)
        write(ax, -0.5, -0.5 - (above - 26) / height, COLUMNS, ha="left")
        write(ax, -0.5 - (side + 11) / cell, -0.5, ROWS, ha="right", **UPRIGHT)
        for y, label in enumerate(rows):
            write(ax, -0.5 - 6 / cell, y, label, ha="right")
        tried = {(j, i): pair for i, row in enumerate(table) for j, pair in enumerate(row)}
        found = {at: (count, n) for at, (count, n) in tried.items() if n}
        fills = _heat(ax, {at: count / n for at, (count, n) in found.items()}, cell, height)
        if written:
            for (x, y), (count, n) in found.items():
                write(ax, x - 0.5 / cell, y, f"{count}/{n}", size=TINY, color=on(fills[x, y]))
        empty = [at for at in tried if at not in found]
        same = [(x, y) for x, y in empty if x == y]
        _cells(ax, same, cell, height, facecolor=INK, alpha=0.15)
        dashes = [at for at in empty if at not in same]
        ax.plot(*zip(*dashes, strict=True), "_", color=INK, alpha=0.5, markersize=5, markeredgewidth=0.75)
        said = [f"{labels[y]} to {labels[x]} {count} of {n}" for (x, y), (count, n) in found.items()]
        words.append(f"{_spaced(name)}: {', '.join(said)}." if said else f"{_spaced(name)}: {NO_ANSWERS}.")
    _scale(figure, "count/answers; – no answers" if written else "– no answers")
    if counted:
        words.append("Pairs that are not named have no answers.")
    return finish(figure, title, _sentences(words))


@drawn
def times_figure(label_ms: dict[str, Times], verdict_ms: dict[str, Times] | None, title: str) -> str:
    """How long answers took: the QUANTILES as thin line, thick line and median, on a logarithmic axis.

    `verdict_ms` is None where the study asks for no verdict.
    """
    names = list(label_ms)
    parts = {"labeling": label_ms} | ({} if verdict_ms is None else {"judging": verdict_ms})
    left, top, row = names_width(names) + 14, 44, 40
    bottom = top + row * max(len(names) - 1, 0) + 18
    figure = canvas(bottom + 46)
    figure.text(0, 8 / (bottom + 46), TIMES_KEY, size=SMALL, va="center_baseline")
    pitch = (WIDTH - left) / 2
    seconds = [
        q / 1000 for of in parts.values() for t in of.values() if t.quantiles for q in t.quantiles if q > 0
    ]
    first = max((t for t in TICKS[:-1] if t <= min(seconds, default=1)), default=TICKS[0])
    last = min((t for t in TICKS if t >= max(seconds, default=10) and t > first), default=TICKS[-1])
    ticks = [t for t in TICKS if first <= t <= last]
    words = []
    for i, (heading, times) in enumerate(parts.items()):
        ax = panel(figure, left + i * pitch + 6, top - 22, pitch - 40, bottom - top + 22)
        ax.set(xscale="log", xlim=(first, last), ylim=(max(len(names) - 1, 0) + 18 / row, -22 / row))
        ax.set_xticks(ticks, [f"{tick:g}" + (" s" if tick == last else "") for tick in ticks])
        ax.minorticks_off()
        ax.grid(axis="x", clip_on=False)
        headed(ax, heading, pitch - 40, 14)
        if i == 0:
            named(ax, names, 20)
        for y, name in enumerate(names):
            found = times.get(name)
            if found is None or found.quantiles is None:
                note(ax, first, y, NO_ANSWERS, 4, ha="left", size=SMALL)
                words.append(f"{_spaced(name)}, {heading}: {NO_ANSWERS}.")
                continue
            xs = [min(max(q / 1000, first), last) for q in found.quantiles]
            color = COLORS.get(name, OTHER)
            ax.plot(xs[::4], [y, y], color=color, linewidth=2, solid_capstyle="round", clip_on=False)
            ax.plot(xs[1:4:2], [y, y], color=color, linewidth=9, solid_capstyle="butt", clip_on=False)
            ax.plot(xs[2], y, "o", color=color, markersize=14, clip_on=False)
            ax.plot(xs[2], y, "o", color="white", markersize=5, clip_on=False)
            note(ax, xs[2], y, in_seconds(found.quantiles[2]), dy=15)
            values = ", ".join(
                f"{100 * q:.0f} % within {in_seconds(ms)}"
                for q, ms in zip(QUANTILES, found.quantiles, strict=True)
            )
            words.append(f"{_spaced(name)}, {heading}: of {found.n} answers {values}.")
    return finish(figure, title, _sentences(words))


def in_seconds(ms: float) -> str:
    """Milliseconds as seconds with one decimal, below a second with two."""
    seconds = Decimal(repr(ms)) / 1000
    step = Decimal("0.01" if seconds < 1 else "0.1")
    return f"{seconds.quantize(step, ROUND_HALF_UP)} s"


def _grid(
    figure: "Figure", left: float, top: float, cell: float, height: float, columns: Sequence[str], rows: int
) -> "Axes":
    """Axes for a heat map: cells have whole numbers as their middles, rows downwards; the columns' labels above."""
    ax = panel(figure, left, top, cell * max(1, len(columns)), height * max(1, rows))
    ax.set(xlim=(-0.5, max(1, len(columns)) - 0.5), ylim=(max(1, rows) - 0.5, -0.5))
    ax.set_axis_off()  # ticks take four times as long as texts
    flat = _is_flat(columns, cell)
    for x, label in enumerate(columns):
        if flat:
            write(ax, x, -0.5 - 9 / height, label)
        else:
            write(ax, x, -0.5 - 5 / height, wrapped(label, 80, 1)[0], ha="left", **UPRIGHT)
    return ax


def _heat(
    ax: "Axes", shares: dict[tuple[int, int], float], cell: float, height: float
) -> dict[tuple[int, int], str]:
    """Cells (column, row) colored by their shares; which color each has got."""
    from matplotlib import colormaps, colors

    fills = [colors.to_hex(color) for color in colormaps["viridis"]([*shares.values()])]
    _cells(ax, [*shares], cell, height, facecolors=fills)
    return dict(zip(shares, fills, strict=True))


def _cells(ax: "Axes", at: Sequence[tuple[int, int]], cell: float, height: float, **how: Any) -> None:
    """Cells (column, row) with a gap of one unit: no pcolormesh, whose gaps would have to be painted."""
    from matplotlib.collections import PolyCollection

    right, below = 0.5 - 1 / cell, 0.5 - 1 / height
    corners = [
        [(x - 0.5, y - 0.5), (x + right, y - 0.5), (x + right, y + below), (x - 0.5, y + below)]
        for x, y in at
    ]
    ax.add_collection(PolyCollection(corners, linewidth=0, clip_on=False, **how), autolim=False)


def _scale(figure: "Figure", key: str) -> None:
    """Along the bottom: what the cells say, and at the right edge what their colors mean."""
    from matplotlib import cm, colormaps, colors

    tall = 72 * figure.get_figheight()
    figure.text(0, 12 / tall, key, size=SMALL, va="center_baseline")
    width = 160
    bar = panel(figure, WIDTH - 40 - width, tall - 17, width, 10)
    viridis = colormaps["viridis"].resampled(40)  # from 50 colors on, matplotlib embeds a picture
    shares = cm.ScalarMappable(colors.Normalize(0, 100), viridis)
    scale = figure.colorbar(shares, bar, orientation="horizontal", ticks=[])
    scale.outline.set_visible(False)
    if scale.solids:
        scale.solids.set(edgecolor="face", linewidth=1.5)  # over the seams
    bar.set_axis_off()
    note(bar, 0, 0.5, "0", -6, xycoords="axes fraction", ha="right", size=SMALL)
    note(bar, 1, 0.5, "100 %", 6, xycoords="axes fraction", ha="left", size=SMALL)


def _header_height(labels: list[str], cell: float) -> float:
    """The room that the labels of `_grid` take."""
    if _is_flat(labels, cell):
        return 16
    return max(text_width(wrapped(label, 80, 1)[0], SMALL) for label in labels) + 8


def _is_flat(labels: Iterable[str], cell: float) -> bool:
    return all(text_width(label, SMALL) <= cell - 2 for label in labels)


def _hatch(part: str) -> str | None:
    return "////" if part == "other" else None


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _sentences(words: list[str]) -> str:
    return " ".join(words) or f"{NO_ANSWERS.capitalize()}."
