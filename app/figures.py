"""The dashboard's figures: SVG by matplotlib that takes its colors from the page, light, dark or print."""

import io
import re

from app.printed import percent
from app.stats import Rate

INK = "#010203"  # replaced by the page's text color
COLORS = {  # Okabe-Ito: told apart by color-blind readers and in grey print
    "undefended": "#d55e00",
    "distilled": "#0072b2",
    "gradient_regularized": "#009e73",
    "adversarially_trained": "#cc79a7",
    "double_backprop": "#e69f00",
}


def rates_figure(models: dict[str, dict[str, Rate]], outcomes: dict[str, str], title: str) -> str:
    """Rates with their intervals, one panel an outcome, one line a model; an inline <svg> with a title.

    `outcomes` gives the panels: key of the rate -> heading.
    """
    import matplotlib  # slow to import, and only the dashboard needs it

    matplotlib.use("svg")
    from matplotlib.figure import Figure

    with matplotlib.rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "rates",
            "font.family": "sans-serif",
            "font.size": 10,
            "text.parse_math": False,  # a "$" in a name is a "$"
            "text.color": INK,
            "axes.edgecolor": INK,
            "axes.labelcolor": INK,
            "xtick.color": INK,
            "ytick.color": INK,
        }
    ):
        names = list(models)
        figure = Figure(figsize=(9.2, 0.8 + 0.5 * len(names)), layout="constrained")
        axes = figure.subplots(1, len(outcomes), sharey=True, squeeze=False)[0]
        for ax, (outcome, heading) in zip(axes, outcomes.items(), strict=True):
            for y, name in enumerate(names):
                rate = models[name][outcome]
                if rate.rate is None or rate.low is None or rate.high is None:
                    continue
                color = COLORS.get(name, "#777777")
                ax.plot(
                    [100 * rate.low, 100 * rate.high],
                    [y, y],
                    color=color,
                    linewidth=3,
                    solid_capstyle="round",
                )
                ax.plot([100 * rate.rate], [y], "o", color=color, markersize=8)
                ax.annotate(
                    f"{percent(rate.rate)} %",
                    (100 * rate.rate, y),
                    xytext=(0, 8),
                    textcoords="offset points",
                    ha="center",
                    fontsize=9,
                )
            ax.set_title(heading, fontsize=10, loc="left")
            ax.set_xlim(-3, 103)
            ax.set_xticks([0, 25, 50, 75, 100], ["0", "25", "50", "75", "100 %"])
            ax.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
            ax.set_ylim(len(names) - 0.5, -0.7)
            ax.tick_params(length=0)
            ax.grid(axis="x", color=INK, alpha=0.12)
            for side in ("top", "right", "left"):
                ax.spines[side].set_visible(False)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Title": title})
    return _inline(out.getvalue(), title, describe(models, outcomes))


def describe(models: dict[str, dict[str, Rate]], outcomes: dict[str, str]) -> str:
    """The figure in words."""
    parts = []
    for outcome, heading in outcomes.items():
        values = [
            f"{name.replace('_', ' ')} {percent(r.rate)} % "
            f"(95 % interval {percent(r.low)} to {percent(r.high)})"
            for name, r in ((name, rates[outcome]) for name, rates in models.items())
            if r.rate is not None and r.low is not None and r.high is not None
        ]
        parts.append(f"{heading}: {', '.join(values) or 'no answers yet'}.")
    return " ".join(parts)


def _inline(svg: str, title: str, description: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = svg.replace(INK, "currentColor")
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r'\1 width="100%"', svg, count=1)
    label = f'<svg role="img" aria-label="{_escape(title)}. {_escape(description)}"'
    return svg.replace("<svg", label, 1)


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
