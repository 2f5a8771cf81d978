"""The figures of a study's views: parts, thirds of the session, digits, pairs and times; see `app.figures`."""

import math
from collections.abc import Iterable
from decimal import ROUND_HALF_UP, Decimal

from app.figures import (
    COLORS,
    NO_ANSWERS,
    OTHER,
    SMALL,
    WIDTH,
    Canvas,
    in_words,
    names_width,
    on,
    percent_axis,
    shown,
    text_width,
    viridis,
    wrapped,
)
from app.outcomes import COMPONENTS
from app.printed import percent
from app.stats import Rate
from app.views import QUANTILES, THIRDS, Times

PARTS = {  # fill; apart in lightness, for grey print, and the lightest is hatched
    "target_first": "#7a2500",
    "target_second": "#d55e00",
    "none": "#fbc48a",
    "source": "#56b4e9",
    "other": "#e4e4e4",
}
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
    entries = _flow([(part, words, 20 + text_width(words) + 16) for part, words in COMPONENTS.items()], WIDTH)
    top = 20 * len(entries) + 14 + bar / 2
    bottom = top + row * (len(names) - 1) + bar / 2 + 8
    canvas = Canvas(bottom + 22)
    for i, line in enumerate(entries):
        for x, part, words in line:
            _part(canvas, part, x, 3 + 20 * i, 14, 14)
            canvas.text(x + 20, 10 + 20 * i, words)
    canvas.names(names, left - 14, top, row)
    percent_axis(canvas, left, width, top - bar / 2 - 4, bottom)
    for i, counts in enumerate(components.values()):
        y, total, before = top + row * i, sum(counts.values()), 0
        if not total:
            canvas.text(left + 6, y, NO_ANSWERS, size=SMALL)
        for part in COMPONENTS:
            n = counts.get(part, 0)
            if not n:
                continue
            x, size = left + width * before / total, width * n / total
            before += n
            gap = 1 if size > 3 else 0
            _part(canvas, part, x, y - bar / 2, size - gap, bar)
            share, center = f"{percent(n / total)} %", x + (size - gap) / 2
            room = max(text_width(share), text_width(str(n), SMALL)) + 4
            if room < size:
                fill = PARTS[part]
                canvas.rect(center - room / 2, y - 14, room, 28, fill)  # over the hatching
                canvas.text(center, y - 7, share, "middle", fill=on(fill))
                canvas.text(center, y + 8, str(n), "middle", SMALL, on(fill))
    sentences = []
    for name, counts in components.items():
        total = sum(counts.values())
        if not total:
            sentences.append(f"{_spaced(name)}: {NO_ANSWERS}.")
            continue
        parts = ((meaning, counts.get(part, 0)) for part, meaning in COMPONENTS.items())
        values = [f"{meaning} {n} ({percent(n / total)} %)" for meaning, n in parts]
        sentences.append(f"{_spaced(name)}: of {total} answers {', '.join(values)}.")
    return canvas.finish(title, _sentences(sentences))


def thirds_figure(thirds: dict[str, dict[str, list[Rate]]], outcome: str, heading: str, title: str) -> str:
    """The rate of `outcome` in each of THIRDS, one line a model, with intervals side by side."""
    rates = {name: by_outcome.get(outcome, []) for name, by_outcome in thirds.items()}
    left, top, bottom = 44, 34, 250
    canvas = Canvas(bottom + 28)
    canvas.text(0, 8, heading)
    found = {name: [(i, r) for i, r in enumerate(map(shown, of)) if r] for name, of in rates.items()}
    highest = max((high for of in found.values() for _, (_, _, high) in of), default=1)
    ceiling, step = next(axis for axis in AXES if axis[0] >= 100 * highest or axis is AXES[-1])
    ends = [
        (name, f"{percent(of[-1][1][0])} %" if of else NO_ANSWERS, of[-1][1][0] if of else -1)
        for name, of in found.items()
    ]
    value = max((text_width(said) for _, said, _ in ends), default=0)
    label = names_width(list(rates))
    right = WIDTH - label - value - 34
    pitch, dodge = (right - left) / 3, 12

    def y_of(rate: float) -> float:
        return bottom - (bottom - top) * 100 * rate / ceiling

    for tick in range(0, ceiling + 1, step):
        canvas.grid(left, y_of(tick / 100), right, y_of(tick / 100))
        canvas.text(left - 6, y_of(tick / 100), f"{tick}" + (" %" if tick == ceiling else ""), "end", SMALL)
    for i, third in enumerate(THIRDS):
        canvas.text(left + pitch * (i + 0.5), bottom + 14, third, "middle")
    places = dict(
        zip(found, _apart([y_of(max(rate, 0)) for _, _, rate in ends], 15, top, bottom), strict=True)
    )
    for k, (name, of) in enumerate(found.items()):
        color = COLORS.get(name, OTHER)
        shift = dodge * (k - (len(found) - 1) / 2)
        points = {
            i: (left + pitch * (i + 0.5) + shift, y_of(rate), y_of(low), y_of(high))
            for i, (rate, low, high) in of
        }
        for i, (x, y, low, high) in points.items():
            if i + 1 in points:
                canvas.line(x, y, points[i + 1][0], points[i + 1][1], color, 3)
            canvas.line(x, low, x, high, color, 1.5, round_ends=True)
            canvas.dot(x, y, color)
        place = places[name]
        if of:
            x, y, _, _ = points[of[-1][0]]
            canvas.line(x + 7, y, right + 6, place, color, 0.75)
        said = ends[k][1]
        canvas.text(right + 10 + value, place, said, "end")
        canvas.text(right + 16 + value, place, wrapped(name, WIDTH - right - 16 - value, 1)[0])
    words = [f"{heading}, rate by third of the session."]
    words += [
        f"{_spaced(name)}: {in_words(dict(zip(THIRDS, of, strict=False)))}." for name, of in rates.items()
    ]
    return canvas.finish(title, _sentences(words))


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
    panel = above + height * len(names)
    canvas = Canvas(panel * (1 if side_by_side else 2) + (0 if side_by_side else 20) + 34)
    words = []
    for i, (heading, rates) in enumerate(
        (("by original label", by_source), ("by the network’s answer", by_target))
    ):
        x0 = left + (width + gap if side_by_side and i else 0)
        y0 = above + (panel + 20 if i and not side_by_side else 0)
        canvas.text(x0, y0 - above + 8, heading)
        _header(canvas, columns, x0, y0, cell)
        if not (side_by_side and i):
            canvas.names(names, left - 10, y0 + height / 2, height)
        for row, name in enumerate(names):
            for column, label in enumerate(columns):
                x, y = x0 + column * cell, y0 + row * height
                rate = rates.get(name, {}).get(label)
                if rate is None or rate.rate is None:
                    canvas.text(x + cell / 2, y + height / 2, "–", "middle")
                    continue
                fill = viridis(rate.rate)
                canvas.rect(x, y, cell - 1, height - 1, fill)
                for dy, said, most in ((12, percent(rate.rate), SMALL), (25, f"n {rate.n}", TINY)):
                    size = min(most, (cell - 2) / text_width(said, 1))
                    canvas.text(x + (cell - 1) / 2, y + dy, said, "middle", size, on(fill))
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
    _scale(canvas, "percent of n answers; – no answers yet")
    return canvas.finish(title, _sentences(words))


def pairs_figure(pairs: dict[str, list[list[tuple[int, int]]]], labels: list[str], title: str) -> str:
    """The share of every original label (row) and network's answer (column): one heat map a model."""
    names = list(pairs)
    side = (
        max((text_width(words, SMALL) for label in labels for words in wrapped(label, 80, 1)), default=0) + 6
    )
    left, gap = side + 18, 22
    width = (WIDTH - gap) / 2 - left
    cell, height = width / max(1, len(labels)), 22
    above = 40 + _header_height(labels, cell)
    rows_named = text_width(ROWS, SMALL)
    panel = above + max(height * len(labels), rows_named) + 22
    counted = [f"{count}/{n}" for rows in pairs.values() for row in rows for count, n in row if n]
    written = max((text_width(said, TINY) for said in counted), default=0) <= cell - 2
    canvas = Canvas(panel * math.ceil(len(names) / 2) + 18)
    words = []
    for k, (name, rows) in enumerate(pairs.items()):
        x0, y0 = left + (k % 2) * (width + left + gap), panel * (k // 2) + above
        canvas.text(x0, y0 - above + 8, wrapped(name, width, 1)[0])
        canvas.text(x0, y0 - above + 26, COLUMNS, size=SMALL)
        canvas.upright(x0 - side - 8, y0 + rows_named, ROWS)
        _header(canvas, labels, x0, y0, cell)
        said = []
        for i, (label, row) in enumerate(zip(labels, rows, strict=True)):
            canvas.text(x0 - 6, y0 + (i + 0.5) * height, wrapped(label, 80, 1)[0], "end", SMALL)
            for j, (count, n) in enumerate(row):
                x, y = x0 + j * cell, y0 + i * height
                if n:
                    fill = viridis(count / n)
                    canvas.rect(x, y, cell - 1, height - 1, fill)
                    said.append(f"{label} to {labels[j]} {count} of {n}")
                    if written:
                        canvas.text(
                            x + (cell - 1) / 2, y + height / 2, f"{count}/{n}", "middle", TINY, on(fill)
                        )
                elif i == j:
                    canvas.rect(x, y, cell - 1, height - 1, "currentColor").set("fill-opacity", "0.15")
                else:
                    canvas.text(x + cell / 2, y + height / 2, "–", "middle", TINY).set("fill-opacity", "0.5")
        words.append(f"{_spaced(name)}: {', '.join(said)}." if said else f"{_spaced(name)}: {NO_ANSWERS}.")
    _scale(canvas, "count/answers; – no answers" if written else "– no answers")
    if any(n for rows in pairs.values() for row in rows for _, n in row):
        words.append("Pairs that are not named have no answers.")
    return canvas.finish(title, _sentences(words))


def times_figure(label_ms: dict[str, Times], verdict_ms: dict[str, Times], title: str) -> str:
    """How long answers took: the QUANTILES as thin line, thick line and median, on a logarithmic axis."""
    names = list(label_ms)
    left, top, row = names_width(names) + 14, 44, 40
    bottom = top + row * (len(names) - 1) + 18
    canvas = Canvas(bottom + 46)
    canvas.names(names, left - 14, top, row)
    canvas.text(0, canvas.height - 8, TIMES_KEY, size=SMALL)
    pitch = (WIDTH - left) / 2
    seconds = [
        q / 1000
        for of in (label_ms, verdict_ms)
        for t in of.values()
        if t.quantiles
        for q in t.quantiles
        if q > 0
    ]
    first = max((t for t in TICKS[:-1] if t <= min(seconds, default=1)), default=TICKS[0])
    last = min((t for t in TICKS if t >= max(seconds, default=10) and t > first), default=TICKS[-1])
    ticks = [t for t in TICKS if first <= t <= last]
    words = []
    for i, (heading, times) in enumerate((("labeling", label_ms), ("judging", verdict_ms))):
        x0, width = left + i * pitch + 6, pitch - 40

        def x_of(ms: float, x0: float = x0, width: float = width) -> float:
            share = math.log(max(ms / 1000, first) / first) / math.log(last / first)
            return x0 + min(share, 1) * width

        canvas.text(x0, 8, heading)
        for tick in ticks:
            x = x_of(1000 * tick)
            canvas.grid(x, top - 22, x, bottom)
            canvas.text(x, bottom + 12, f"{tick:g}" + (" s" if tick == last else ""), "middle", SMALL)
        for y, name in ((top + row * j, name) for j, name in enumerate(names)):
            found = times.get(name)
            if found is None or found.quantiles is None:
                canvas.text(x0 + 4, y, NO_ANSWERS, size=SMALL)
                words.append(f"{_spaced(name)}, {heading}: {NO_ANSWERS}.")
                continue
            xs = [x_of(q) for q in found.quantiles]
            color = COLORS.get(name, OTHER)
            canvas.line(xs[0], y, xs[4], y, color, 2, round_ends=True)
            canvas.line(xs[1], y, xs[3], y, color, 9)
            canvas.dot(xs[2], y, color, 7)
            canvas.dot(xs[2], y, "#fff", 2.5)
            canvas.text(xs[2], y - 15, in_seconds(found.quantiles[2]), "middle")
            values = ", ".join(
                f"{100 * q:.0f} % within {in_seconds(ms)}"
                for q, ms in zip(QUANTILES, found.quantiles, strict=True)
            )
            words.append(f"{_spaced(name)}, {heading}: of {found.n} answers {values}.")
    return canvas.finish(title, _sentences(words))


def in_seconds(ms: float) -> str:
    """Milliseconds as seconds with one decimal, below a second with two."""
    seconds = Decimal(repr(ms)) / 1000
    step = Decimal("0.01" if seconds < 1 else "0.1")
    return f"{seconds.quantize(step, ROUND_HALF_UP)} s"


def _scale(canvas: Canvas, key: str) -> None:
    """Along the bottom: what the cells say, and at the right edge what their colors mean."""
    y = canvas.height - 12
    canvas.text(0, y, key, size=SMALL)
    width, steps = 160, 40
    x0 = WIDTH - 40 - width
    for i in range(steps):
        canvas.rect(
            x0 + width * i / steps,
            y - 5,
            width / steps + (0.5 if i < steps - 1 else 0),
            10,
            viridis(i / (steps - 1)),
        )
    canvas.text(x0 - 6, y, "0", "end", SMALL)
    canvas.text(WIDTH - 34, y, "100 %", size=SMALL)


def _header(canvas: Canvas, labels: list[str], x0: float, y0: float, cell: float) -> None:
    """Labels over the columns of a heat map, upright where they are wider."""
    flat = _is_flat(labels, cell)
    for i, label in enumerate(labels):
        if flat:
            canvas.text(x0 + (i + 0.5) * cell, y0 - 9, label, "middle", SMALL)
        else:
            canvas.upright(x0 + (i + 0.5) * cell, y0 - 5, wrapped(label, 80, 1)[0])


def _header_height(labels: list[str], cell: float) -> float:
    if _is_flat(labels, cell):
        return 16
    return max(text_width(wrapped(label, 80, 1)[0], SMALL) for label in labels) + 8


def _is_flat(labels: Iterable[str], cell: float) -> bool:
    return all(text_width(label, SMALL) <= cell - 2 for label in labels)


def _part(canvas: Canvas, part: str, x: float, y: float, width: float, height: float) -> None:
    rect = canvas.rect(x, y, width, height, PARTS[part])
    if part == "other":
        canvas.hatch(rect, "#777")


def _flow(entries: list[tuple[str, str, float]], width: float) -> list[list[tuple[float, str, str]]]:
    """Entries (key, words, how wide) set in lines: (x, key, words)."""
    lines: list[list[tuple[float, str, str]]] = [[]]
    x = 0.0
    for key, words, wide in entries:
        if lines[-1] and x + wide > width:
            lines.append([])
            x = 0.0
        lines[-1].append((x, key, words))
        x += wide
    return lines


def _apart(places: list[float], least: float, top: float, bottom: float) -> list[float]:
    """The places moved as little as it takes to be `least` apart and not below `bottom`, in their order."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = dict.fromkeys(order, 0.0)
    at = top - least
    for i in order:
        at = moved[i] = max(places[i], at + least)
    at = bottom + least
    for i in reversed(order):
        at = moved[i] = min(moved[i], at - least)
    return [moved[i] for i in range(len(places))]


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _sentences(words: list[str]) -> str:
    return " ".join(words) or f"{NO_ANSWERS.capitalize()}."
