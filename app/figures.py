"""The dashboard's figures: SVG by matplotlib that takes its colors from the page, light, dark or print."""

import io
from xml.etree import ElementTree

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


SVG = "{http://www.w3.org/2000/svg}"
ElementTree.register_namespace("", "http://www.w3.org/2000/svg")
ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")


def _inline(svg: str, title: str, description: str) -> str:
    """The figure as part of a page whose policy forbids inline styles, which would also reach the whole page."""
    root = ElementTree.fromstring(svg[svg.index("<svg") :].replace(INK, "currentColor"))
    for element in root.iter():
        for name, value in _declarations(element.attrib.pop("style", "")):
            element.set(name, value)
    for defs in root.findall(f"{SVG}defs"):
        for style in defs.findall(f"{SVG}style"):
            # The one rule, for *, becomes what everything inherits.
            for name, value in _declarations((style.text or "").strip().removeprefix("*{").removesuffix("}")):
                root.set(name, value)
            defs.remove(style)
    for metadata in root.findall(f"{SVG}metadata"):
        root.remove(metadata)
    del root.attrib["height"]
    root.set("width", "100%")
    root.set("role", "img")
    root.set("aria-label", f"{title}. {description}")
    return ElementTree.tostring(root, encoding="unicode")


def _declarations(css: str) -> list[tuple[str, str]]:
    """`a: b; c: d` as pairs. Every property that matplotlib sets is also an attribute of the same name."""
    pairs = (declaration.partition(":") for declaration in css.split(";") if declaration.strip())
    return [(name.strip(), value.strip()) for name, _, value in pairs]
