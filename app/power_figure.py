"""The figure of power over the number of participants; see `app.figures`."""

from collections.abc import Sequence

from app.figures import COLORS, INK, WIDTH, as_svg, canvas, drawn, finish, note, panel
from app.power import Power
from app.printed import percent


@drawn
def figure(powers: Sequence[Power], wanted: float, title: str, inline: bool = False) -> str:
    """Power over the number of participants, an SVG with a title; `inline` for a page with a strict policy."""
    ordered = sorted(powers, key=lambda p: p.participants)
    n = [p.participants for p in ordered]
    blue, vermilion = COLORS["distilled"], COLORS["undefended"]  # the lines differ in their dashes too
    lines = (
        ("these images", [(p.sign_flip, p.sign_flip_se) for p in ordered], blue, "-", (10, -12), "left"),
        (
            "new images too",
            [(p.new_images, p.new_images_se) for p in ordered],
            vermilion,
            "--",
            (-8, 6),
            "right",
        ),
    )
    chart = canvas(280)
    ax = panel(chart, 44, 12, WIDTH - 64, 220)
    for name, values, color, dashes, beside, side in lines:
        power = [100 * value for value, _ in values]
        error = [100 * se for _, se in values]
        ax.errorbar(n, power, error, color=color, linestyle=dashes, linewidth=2, marker="o", markersize=5)
        place = min(range(len(n)), key=lambda i: abs(power[i] - 50))  # where the line is steep
        note(ax, n[place], power[place], name, *beside, color=color, ha=side)
    ax.axhline(100 * wanted, color=INK, linewidth=0.8, alpha=0.6)
    note(ax, 1, 100 * wanted, f"{percent(wanted)} %", 0, 8, xycoords=ax.get_yaxis_transform(), ha="right")
    ax.set(xlabel="participants", xlim=(0, 1.04 * n[-1]), ylim=(-2, 104))
    ax.yaxis.set_visible(True)
    ax.set_yticks([0, 25, 50, 75, 100], ["0", "25", "50", "75", "100 %"])
    ax.grid(axis="y")
    if inline:
        return finish(chart, title, describe(ordered))
    return as_svg(chart, facecolor="white", metadata={"Date": None, "Title": title})


def describe(powers: Sequence[Power]) -> str:
    """The figure in words."""
    values = [
        f"{p.participants} participants {percent(p.sign_flip)} % (new images too: {percent(p.new_images)} %)"
        for p in powers
    ]
    return f"Power for new participants on these images: {', '.join(values)}."
