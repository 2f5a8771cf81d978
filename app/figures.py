"""The dashboard's figure of rates, and what its figures share: colors, names of models, words."""

from collections.abc import Sequence

from app.drawing import SIZE, SMALL, WIDTH, Drawing, Panel, text_width, wrapped
from app.outcomes import OUTCOMES
from app.printed import percent
from app.stats import Rate

COLORS = {  # Okabe-Ito: told apart by color-blind readers and in gray print
    "undefended": "#d55e00",
    "distilled": "#0072b2",
    "gradient_regularized": "#009e73",
    "adversarially_trained": "#cc79a7",
    "double_backprop": "#e69f00",
}
OTHER = "#777777"
NAMES = 126  # the widest that the names of models get
NO_ANSWERS = "no answers yet"


def named(drawing: Drawing, names: Sequence[str], right: float, top: float, row: float) -> None:
    """The names of models, so far to the right, in rows of which the first has its middle at `top`."""
    for i, name in enumerate(names):
        lines = wrapped(name, NAMES)
        drawing.lines(right, top + row * i - (len(lines) - 1) / 2 * 1.2 * SIZE, lines, "end")


def names_width(names: Sequence[str]) -> float:
    """The room that `named` takes."""
    return max((text_width(line) for name in names for line in wrapped(name, NAMES)), default=0)


def apart(places: list[float], least: float, first: float, last: float) -> list[float]:
    """The places moved as little as it takes to be `least` apart and not past `last`, in their order."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = dict.fromkeys(order, 0.0)
    at = first - least
    for i in order:
        at = moved[i] = max(places[i], at + least)
    at = last + least
    for i in reversed(order):
        at = moved[i] = min(moved[i], at - least)
    return [moved[i] for i in range(len(places))]


def shown(rate: Rate) -> tuple[float, float, float] | None:
    """Rate, low and high, where there are any."""
    if rate.rate is None or rate.low is None or rate.high is None:
        return None
    return rate.rate, rate.low, rate.high


def on(color: str) -> str:
    """Black or white, whichever has more contrast (WCAG) on that color, #rrggbb."""
    channels = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return "#000000" if 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 else "#ffffff"


def rates_figure(models: dict[str, dict[str, Rate]], outcomes: dict[str, str], title: str) -> str:
    """Rates with their intervals, one panel an outcome, one line a model; a tick is the level of chance.

    `outcomes` gives the panels: key of the rate -> heading. A rate of chance has the key that OUTCOMES names.
    """
    names = list(models)
    left, top, row = names_width(names) + 14, 52, 40
    bottom = top + row * max(len(names) - 1, 0) + 26
    drawing = Drawing(bottom + 22)
    gap = 44  # between panels
    width = (WIDTH - left - 30 + gap) / max(1, len(outcomes)) - gap
    explained = False
    for i, (outcome, heading) in enumerate(outcomes.items()):
        panel = Panel(drawing, left + i * (width + gap) + 6, top - 22, width, bottom - top + 22)
        panel.headed(heading, width + gap - 12)
        panel.percents()
        if i == 0:
            named(drawing, names, left - 14, top, row)
        levels = []  # of chance: where
        for k, (name, rates) in enumerate(models.items()):
            y = top + row * k
            found, chance = shown(rates[outcome]), chance_of(rates, outcome)
            color = COLORS.get(name, OTHER)
            if found:
                rate, low, high = (panel.x(100 * share) for share in found)
                drawing.line([(low, y), (high, y)], color, width=3, cap="round")
            if chance is not None:
                levels.append((panel.x(100 * chance), y))
                drawing.line([(levels[-1][0], y - 7), (levels[-1][0], y + 9)], width=1.5)
            if found:
                drawing.dot(rate, y, 4, color)
                drawing.text(rate, y - 14, f"{percent(found[0])} %")
            else:
                drawing.text(panel.left + 4, y, NO_ANSWERS, "start", SMALL)
        if levels and not explained:  # at the lowest, which no other row's percentage can touch
            drawing.text(levels[-1][0], levels[-1][1] + 16, "chance", size=SMALL)
            explained = True
    return drawing.inline(title, describe(models, outcomes))


def chance_of(rates: dict[str, Rate], outcome: str) -> float | None:
    """The level of chance of an outcome, where it has one and there are answers."""
    key = OUTCOMES[outcome].chance if outcome in OUTCOMES else None
    rate = rates.get(key) if key else None
    return rate.rate if rate else None


def describe(models: dict[str, dict[str, Rate]], outcomes: dict[str, str]) -> str:
    """The figure of rates in words."""
    parts = []
    for outcome, heading in outcomes.items():
        parts.append(f"{heading}: {in_words({name: rates[outcome] for name, rates in models.items()})}.")
        levels = [(name, chance_of(rates, outcome)) for name, rates in models.items()]
        chance = [f"{name.replace('_', ' ')} chance {percent(x)} %" for name, x in levels if x is not None]
        if chance:
            parts.append(f"{heading}, for a label that is neither: {', '.join(chance)}.")
    return " ".join(parts)


def in_words(rates: dict[str, Rate]) -> str:
    """Rates and intervals by name, as far as there are any."""
    values = [
        f"{name.replace('_', ' ')} {percent(found[0])} % "
        f"(95 % interval {percent(found[1])} to {percent(found[2])})"
        for name, found in ((name, shown(rate)) for name, rate in rates.items())
        if found
    ]
    return ", ".join(values) or NO_ANSWERS
