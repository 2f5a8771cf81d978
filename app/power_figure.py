"""The figure of power over the number of participants; see `app.figures`."""

from collections.abc import Sequence

from app.drawing import SMALL, WIDTH, Drawing, Panel
from app.figures import COLORS
from app.power import Power
from app.printed import percent


def figure(powers: Sequence[Power], wanted: float, title: str, inline: bool = False) -> str:
    """Power over the number of participants, an SVG with a title; `inline` for a page with a strict policy."""
    ordered = sorted(powers, key=lambda p: p.participants)
    blue, vermilion = COLORS["distilled"], COLORS["undefended"]  # the lines differ in their dashes too
    lines = (
        ("these images", [(p.sign_flip, p.sign_flip_se) for p in ordered], blue, "", (10, 12), "start"),
        (
            "new images too",
            [(p.new_images, p.new_images_se) for p in ordered],
            vermilion,
            "7.4 3.2",
            (-8, -6),
            "end",
        ),
    )
    drawing = Drawing(280)
    panel = Panel(drawing, 44, 12, WIDTH - 64, 220, 0, 1.04 * ordered[-1].participants)
    xs = [panel.x(p.participants) for p in ordered]

    def height(share: float) -> float:
        return panel.bottom - panel.height * (100 * share + 2) / 106

    for share, said in ((0, "0"), (0.25, "25"), (0.5, "50"), (0.75, "75"), (1, "100 %")):
        drawing.line([(panel.left, height(share)), (WIDTH - 20, height(share))], cap="square", opacity=0.15)
        drawing.text(panel.left - 6, height(share), said, "end", SMALL)
    for tick in _ticks(ordered[-1].participants):
        drawing.text(panel.x(tick), panel.bottom + 11.8, f"{tick:g}", size=SMALL)
    drawing.text(panel.left + panel.width / 2, panel.bottom + 30, "participants", size=SMALL)
    for name, values, color, dashes, (dx, dy), anchor in lines:
        ys = [height(power) for power, _ in values]
        drawing.line(list(zip(xs, ys, strict=True)), color, width=2, dashes=dashes)
        for x, y, (power, se) in zip(xs, ys, values, strict=True):
            drawing.line([(x, height(power - se)), (x, height(power + se))], color, width=2)
            drawing.dot(x, y, 2.5, color)
        place = min(range(len(xs)), key=lambda i: abs(values[i][0] - 0.5))  # where the line is steep
        drawing.text(xs[place] + dx, ys[place] + dy, name, anchor, color=color)
    drawing.line([(panel.left, height(wanted)), (WIDTH - 20, height(wanted))], width=0.8, opacity=0.6)
    drawing.text(WIDTH - 20, height(wanted) - 8, f"{percent(wanted)} %", "end")
    return drawing.inline(title, describe(ordered)) if inline else drawing.alone(title)


def _ticks(last: int) -> range:
    """Round numbers from 0 to `last`, some six of them."""
    step = next(k * 10**e for e in range(12) for k in (1, 2, 5) if last / (k * 10**e) <= 7)
    return range(0, last + 1, step)


def describe(powers: Sequence[Power]) -> str:
    """The figure in words."""
    values = [
        f"{p.participants} participants {percent(p.sign_flip)} % (new images too: {percent(p.new_images)} %)"
        for p in powers
    ]
    return f"Power for new participants on these images: {', '.join(values)}."
