"""The figures of a study's views: parts, thirds of the session, digits, pairs and times; see `app.figures`."""

import math
from collections.abc import Iterable, Sequence
from decimal import ROUND_HALF_UP, Decimal
from functools import cache

from app.drawing import INK, SMALL, WIDTH, Drawing, Panel, text_width, wrapped
from app.figures import COLORS, NO_ANSWERS, OTHER, apart, in_words, named, names_width, on, shown
from app.outcomes import COMPONENTS
from app.printed import percent
from app.stats import Rate
from app.views import QUANTILES, THIRDS, Times

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


def components_figure(components: dict[str, dict[str, int]], title: str) -> str:
    """What every answer was: one bar a model, split into COMPONENTS, in percent of the model's answers."""
    names = list(components)
    left, row, bar = names_width(names) + 14, 44, 34
    width = WIDTH - left - 20
    top = 54 + bar / 2
    bottom = top + row * max(len(names) - 1, 0) + bar / 2 + 8
    drawing = Drawing(bottom + 22)
    _legend(drawing)
    panel = Panel(drawing, left, top - bar / 2 - 4, width, bottom - top + bar / 2 + 4)
    named(drawing, names, left - 14, top, row)
    panel.percents()
    for k, counts in enumerate(components.values()):
        y, total, before = top + row * k, sum(counts.values()), 0
        if not total:
            drawing.text(left + 6, y, NO_ANSWERS, "start", SMALL)
        for part in COMPONENTS:
            n = counts.get(part, 0)
            if not n:
                continue
            at, size = left + width * before / total, width * n / total
            before += n
            wide = size - (1 if size > 3 else 0)
            fill = PARTS[part]
            drawing.box(at, y - bar / 2, wide, bar, fill, hatch=_hatch(part))
            share, center = f"{percent(n / total)} %", at + wide / 2
            room = max(text_width(share), text_width(str(n), SMALL)) + 4
            if room < size:
                if _hatch(part):
                    drawing.box(center - room / 2, y - 14, room, 28, fill)
                drawing.text(center, y - 7, share, color=on(fill))
                drawing.text(center, y + 8, str(n), size=SMALL, color=on(fill))
        if total:
            drawing.edge(left, y - bar / 2, width, bar)
    sentences = []
    for name, counts in components.items():
        total = sum(counts.values())
        if not total:
            sentences.append(f"{_spaced(name)}: {NO_ANSWERS}.")
            continue
        parts = ((meaning, counts.get(part, 0)) for part, meaning in COMPONENTS.items())
        values = [f"{meaning} {n} ({percent(n / total)} %)" for meaning, n in parts]
        sentences.append(f"{_spaced(name)}: of {total} answers {', '.join(values)}.")
    return drawing.inline(title, _sentences(sentences))


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
    drawing = Drawing(bottom + 28)
    panel = Panel(drawing, left, top, width, bottom - top, 0, 3)
    panel.headed(heading, WIDTH, 26)

    def height(rate: float) -> float:
        return bottom - 100 * rate / ceiling * (bottom - top)

    for tick in range(0, ceiling + 1, step):
        y = height(tick / 100)
        drawing.line([(left, y), (left + width, y)], cap="square", opacity=0.15)
        drawing.text(left - 6, y, f"{tick}" + (" %" if tick == ceiling else ""), "end", SMALL)
    for i, third in enumerate(THIRDS):
        drawing.text(panel.x(i + 0.5), bottom + 14.2, third)
    last = [height(of[-1][1][0]) if of else bottom for of in found.values()]
    places = apart(last, 15, top, bottom)  # of equals the first is the highest
    for k, ((name, of), place) in enumerate(zip(found.items(), places, strict=True)):
        color = COLORS.get(name, OTHER)
        at = {i: panel.x(i + 0.5) + 12 * (k - (len(found) - 1) / 2) for i in range(len(THIRDS))}
        rated = dict(of)
        line = [(at[i], height(rated[i][0]) if i in rated else math.nan) for i in at]
        drawing.line(line, color, width=3, cap="square")
        for i, (rate, _, _) in of:
            drawing.dot(at[i], height(rate), 4, color)
        for i, (_, low, high) in of:
            drawing.line([(at[i], height(low)), (at[i], height(high))], color, width=1.5, cap="round")
        if of:
            end = (left + width + 6, place)
            drawing.line([_towards(line[of[-1][0]], end, 7), end], color, width=0.75)
        beside = left + width + 16 + value
        drawing.text(beside - 6, place, said[k], "end")
        drawing.text(beside, place, wrapped(name, WIDTH - beside, 1)[0], "start")
    words = [f"{heading}, rate by third of the session."]
    words += [
        f"{_spaced(name)}: {in_words(dict(zip(THIRDS, of, strict=False)))}." for name, of in rates.items()
    ]
    return drawing.inline(title, _sentences(words))


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
    drawing = Drawing(each * (1 if side_by_side else 2) + (0 if side_by_side else 20) + 34)
    words = []
    for i, (heading, rates) in enumerate(
        (("by original label", by_source), ("by the network’s answer", by_target))
    ):
        x0 = left + (width + gap if side_by_side and i else 0)
        y0 = above + (each + 20 if i and not side_by_side else 0)
        grid = _Grid(drawing, x0, y0, cell, height)
        grid.labeled(columns)
        drawing.lines(x0, y0 - above + 6.7, wrapped(heading, width))
        if not (side_by_side and i):
            named(drawing, names, x0 - 10, y0 + height / 2, height)
        found = {
            (x, y): rate
            for y, name in enumerate(names)
            for x, label in enumerate(columns)
            if (rate := rates.get(name, {}).get(label)) and rate.rate is not None
        }
        for at in ((x, y) for y in range(len(names)) for x in range(len(columns))):
            if at not in found:
                drawing.text(*grid.middle(at), "–")
        fills = grid.heat({at: rate.rate for at, rate in found.items() if rate.rate is not None})
        for at, rate in found.items():
            x, y = grid.middle(at)
            for dy, said, most in ((-5, percent(rate.rate or 0), SMALL), (8, f"n {rate.n}", TINY)):
                size = min(most, (cell - 2) / text_width(said, 1))
                drawing.text(x - 0.5, y + dy, said, size=size, color=on(fills[at]))
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
    _scale(drawing, "percent of n answers; – no answers yet")
    return drawing.inline(title, _sentences(words))


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
    drawing = Drawing(each * math.ceil(len(names) / 2) + 18)
    words = []
    for k, (name, table) in enumerate(pairs.items()):
        x0, y0 = left + (k % 2) * (width + left + gap), each * (k // 2) + above
        grid = _Grid(drawing, x0, y0, cell, height)
        grid.labeled(labels)
        drawing.text(x0, y0 - above + 6.7, wrapped(name, width, 1)[0], "start")
        drawing.text(x0, y0 - above + 26, COLUMNS, "start", SMALL)
        drawing.text(x0 - side - 11, y0, ROWS, "end", SMALL, upright=True)
        for y, label in enumerate(rows):
            drawing.text(x0 - 6, y0 + height * (y + 0.5), label, "end", SMALL)
        tried = {(j, i): pair for i, row in enumerate(table) for j, pair in enumerate(row)}
        found = {at: (count, n) for at, (count, n) in tried.items() if n}
        fills = grid.heat({at: count / n for at, (count, n) in found.items()})
        if written:
            for at, (count, n) in found.items():
                right, down = grid.middle(at)
                drawing.text(right - 0.5, down, f"{count}/{n}", size=TINY, color=on(fills[at]))
        for at in (at for at in tried if at not in found):
            if at[0] == at[1]:
                grid.fill(at, INK, 0.15)
            else:
                right, down = grid.middle(at)
                drawing.line([(right - 2.5, down), (right + 2.5, down)], width=0.75, opacity=0.5)
        said = [f"{labels[y]} to {labels[x]} {count} of {n}" for (x, y), (count, n) in found.items()]
        words.append(f"{_spaced(name)}: {', '.join(said)}." if said else f"{_spaced(name)}: {NO_ANSWERS}.")
    _scale(drawing, "count/answers; – no answers" if written else "– no answers")
    if counted:
        words.append("Pairs that are not named have no answers.")
    return drawing.inline(title, _sentences(words))


def times_figure(label_ms: dict[str, Times], verdict_ms: dict[str, Times] | None, title: str) -> str:
    """How long answers took: the QUANTILES as thin line, thick line and median, on a logarithmic axis.

    `verdict_ms` is None where the study asks for no verdict.
    """
    names = list(label_ms)
    parts = {"labeling": label_ms} | ({} if verdict_ms is None else {"judging": verdict_ms})
    left, top, row = names_width(names) + 14, 44, 40
    bottom = top + row * max(len(names) - 1, 0) + 18
    drawing = Drawing(bottom + 46)
    drawing.text(0, bottom + 38, TIMES_KEY, "start", SMALL)
    pitch = (WIDTH - left) / 2
    seconds = [
        q / 1000 for of in parts.values() for t in of.values() if t.quantiles for q in t.quantiles if q > 0
    ]
    first = max((t for t in TICKS[:-1] if t <= min(seconds, default=1)), default=TICKS[0])
    last = min((t for t in TICKS if t >= max(seconds, default=10) and t > first), default=TICKS[-1])
    ticks = [t for t in TICKS if first <= t <= last]
    words = []
    for i, (heading, times) in enumerate(parts.items()):
        panel = Panel(
            drawing, left + i * pitch + 6, top - 22, pitch - 40, bottom - top + 22, first, last, log=True
        )
        panel.ticks(ticks, [f"{tick:g}" + (" s" if tick == last else "") for tick in ticks])
        panel.headed(heading, pitch - 40, 14)
        if i == 0:
            named(drawing, names, left - 14, top, row)
        for k, name in enumerate(names):
            y, found = top + row * k, times.get(name)
            if found is None or found.quantiles is None:
                drawing.text(panel.left + 4, y, NO_ANSWERS, "start", SMALL)
                words.append(f"{_spaced(name)}, {heading}: {NO_ANSWERS}.")
                continue
            xs = [panel.x(min(max(q / 1000, first), last)) for q in found.quantiles]
            color = COLORS.get(name, OTHER)
            drawing.line([(xs[0], y), (xs[4], y)], color, width=2, cap="round")
            drawing.line([(xs[1], y), (xs[3], y)], color, width=9)
            drawing.dot(xs[2], y, 7, color)
            drawing.dot(xs[2], y, 2.5, "#ffffff")
            drawing.text(xs[2], y - 15, in_seconds(found.quantiles[2]))
            values = ", ".join(
                f"{100 * q:.0f} % within {in_seconds(ms)}"
                for q, ms in zip(QUANTILES, found.quantiles, strict=True)
            )
            words.append(f"{_spaced(name)}, {heading}: of {found.n} answers {values}.")
    return drawing.inline(title, _sentences(words))


def in_seconds(ms: float) -> str:
    """Milliseconds as seconds with one decimal, below a second with two."""
    seconds = Decimal(repr(ms)) / 1000
    step = Decimal("0.01" if seconds < 1 else "0.1")
    return f"{seconds.quantize(step, ROUND_HALF_UP)} s"


class _Grid:
    """A heat map: its cells are named by column and row, and leave a gap of one unit."""

    def __init__(self, drawing: Drawing, left: float, top: float, cell: float, height: float) -> None:
        self.drawing, self.left, self.top, self.cell, self.height = drawing, left, top, cell, height

    def middle(self, at: tuple[int, int]) -> tuple[float, float]:
        return self.left + self.cell * (at[0] + 0.5), self.top + self.height * (at[1] + 0.5)

    def labeled(self, columns: Sequence[str]) -> None:
        """The columns' labels, above."""
        flat = _is_flat(columns, self.cell)
        for i, label in enumerate(columns):
            x, _ = self.middle((i, 0))
            if flat:
                self.drawing.text(x, self.top - 9, label, size=SMALL)
            else:
                self.drawing.text(x, self.top - 5, wrapped(label, 80, 1)[0], "start", SMALL, upright=True)

    def fill(self, at: tuple[int, int], color: str, opacity: float = 1) -> None:
        x, y = self.left + self.cell * at[0], self.top + self.height * at[1]
        self.drawing.box(x, y, self.cell - 1, self.height - 1, color, opacity)

    def heat(self, shares: dict[tuple[int, int], float]) -> dict[tuple[int, int], str]:
        """Cells colored by their shares; which color each has got."""
        scale = viridis()
        fills = {at: scale[min(int(256 * share), 255)] for at, share in shares.items()}
        for at, color in fills.items():
            self.fill(at, color)
        return fills


@cache
def viridis() -> list[str]:
    """256 colors for 0 to 1; of matplotlib, which takes a while to load."""
    from matplotlib import colormaps, colors

    return [colors.to_hex(color) for color in colormaps["viridis"](range(256))]


def _legend(drawing: Drawing) -> None:
    """What the fills of PARTS stand for, in columns of two."""
    columns = [LEGEND[i : i + 2] for i in range(0, len(LEGEND), 2)]
    x = 0.0
    for column in columns:
        for i, part in enumerate(column):
            drawing.box(x, 17.2 * i, 14, 11.8, PARTS[part], hatch=_hatch(part))
            drawing.edge(x, 17.2 * i, 14, 11.8)
            drawing.text(x + 20, 17.2 * i + 5.4, COMPONENTS[part], "start")
        x += 20 + max(text_width(COMPONENTS[part]) for part in column) + 14


def _towards(a: tuple[float, float], b: tuple[float, float], distance: float) -> tuple[float, float]:
    """The point so far from `a` on the way to `b`."""
    share = min(1.0, distance / (math.dist(a, b) or 1))
    return a[0] + share * (b[0] - a[0]), a[1] + share * (b[1] - a[1])


def _scale(drawing: Drawing, key: str) -> None:
    """Along the bottom: what the cells say, and at the right edge what their colors mean."""
    y, width, steps = drawing.height - 12, 160, 40
    left, scale = WIDTH - 40 - width, viridis()
    drawing.text(0, y, key, "start", SMALL)
    for i in range(steps):  # each a little wider, over the seams
        color = scale[round(255 * i / (steps - 1))]
        drawing.box(left + width / steps * i, y - 5, width / steps + (0.5 if i < steps - 1 else 0), 10, color)
    drawing.text(left - 6, y, "0", "end", SMALL)
    drawing.text(left + width + 6, y, "100 %", "start", SMALL)


def _header_height(labels: list[str], cell: float) -> float:
    """The room that the labels of `_grid` take."""
    if _is_flat(labels, cell):
        return 16
    return max(text_width(wrapped(label, 80, 1)[0], SMALL) for label in labels) + 8


def _is_flat(labels: Iterable[str], cell: float) -> bool:
    return all(text_width(label, SMALL) <= cell - 2 for label in labels)


def _hatch(part: str) -> str:
    return OTHER if part == "other" else ""


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _sentences(words: list[str]) -> str:
    return " ".join(words) or f"{NO_ANSWERS.capitalize()}."
