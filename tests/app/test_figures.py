"""The dashboard's figures: they show and say the data, cut nothing off and need no style that the policy blocks."""

import math
import random
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pytest

from app import charts, figures
from app.outcomes import COMPONENTS
from app.stats import Rate, wilson
from app.views import QUANTILES, THIRDS, Times
from tests.app.reading import Page, half_up, percent

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = """"><b style="color: red">$x$ & 'y'</b>"""
OUTCOMES = {
    "human_fooled": "Human fooled",
    "mistake_reasonable": "Mistake reasonable",
    "mistake_reasonable_direct": "Judged reasonable when asked",
}
MODELS = ("undefended", "distilled", "gradient_regularized", "adversarially_trained", "double_backprop")
DIGITS = tuple("0123456789")
WORDS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def rate(count: int, n: int) -> Rate:
    if not n:
        return Rate(0, 0, None, None, None, None, "no answers yet")
    return Rate(count, n, count / n, *wilson(count, n), 1.0, None)


class Study:
    """What `answers` answers a model could have been, and every figure of them."""

    def __init__(self, models: tuple[str, ...], labels: tuple[str, ...], answers: int, seed: int = 0) -> None:
        self.models, self.labels = models, labels
        draw = random.Random(seed)

        def drawn(n: int) -> Rate:
            return rate(draw.randint(0, n), n)

        self.rates = {
            m: {o: drawn(answers) for o in (*OUTCOMES, "placebo_fooled", "placebo_reasonable")}
            for m in models
        }
        self.components = {m: {part: draw.randint(0, answers // 5) for part in COMPONENTS} for m in models}
        self.thirds = {m: {o: [drawn(answers // 3) for _ in range(3)] for o in OUTCOMES} for m in models}
        self.by_source, self.by_target = (
            {m: {label: drawn(draw.randint(0, answers // 5)) for label in labels} for m in models}
            for _ in range(2)
        )
        self.pairs = {
            m: [
                [(0, 0) if i == j else (draw.randint(0, k), k) for j in range(len(labels))]
                for i, k in ((i, draw.randint(0, min(9, answers))) for i in range(len(labels)))
            ]
            for m in models
        }
        self.label_ms, self.verdict_ms = (
            {
                m: Times(answers, sorted(draw.lognormvariate(8, 1) for _ in QUANTILES))
                if answers
                else Times(0, None)
                for m in models
            }
            for _ in range(2)
        )

    def draw(self, title: str = "A title") -> dict[str, str]:
        return {
            "rates": figures.rates_figure(self.rates, OUTCOMES, title),
            "components": charts.components_figure(self.components, title),
            "thirds": charts.thirds_figure(self.thirds, "human_fooled", "Human fooled", title),
            "digits": charts.digits_figure(self.by_source, self.by_target, title),
            "pairs": charts.pairs_figure(self.pairs, list(self.labels), title),
            "times": charts.times_figure(self.label_ms, self.verdict_ms, title),
        }


STUDIES = {
    "three models": Study(MODELS[:3], DIGITS, 110),
    "five models, words": Study(MODELS, WORDS, 1100),
    "one participant": Study(MODELS[:2], DIGITS, 1),
    "no answers": Study(MODELS[:3], DIGITS, 0),
    "no models": Study((), (), 0),
    "hostile names": Study((HOSTILE, "a_model_of_their_own, " * 5), ("a$b$", HOSTILE), 30),
    "many labels": Study(MODELS[:2], tuple(f"class {i}" for i in range(26)), 500),
}
EVERY = [pytest.param(study, id=name) for name, study in STUDIES.items()]
KINDS = list(STUDIES["three models"].draw())


def label_of(svg: str) -> str:
    return ElementTree.fromstring(svg).get("aria-label") or ""


def texts_of(svg: str) -> list[str]:
    return [text.text or "" for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]


@pytest.mark.parametrize("study", EVERY)
def test_nothing_in_them_needs_an_inline_style(study: Study) -> None:
    for svg in study.draw(HOSTILE).values():
        root = ElementTree.fromstring(svg)
        assert (root.get("role"), root.get("width"), root.get("height")) == ("img", "100%", None)
        assert (root.get("aria-label") or "").startswith(f"{HOSTILE}. ")
        for element in root.iter():
            assert element.tag not in (f"{SVG}style", f"{SVG}script", f"{SVG}metadata")
            for name in element.attrib:
                assert name != "style"
                assert not name.startswith("on")


@pytest.mark.parametrize("study", EVERY)
def test_everything_drawn_lies_inside_the_figure(study: Study) -> None:
    for kind, svg in study.draw().items():
        assert not re.search(r"\b(nan|inf|None)\b", svg), kind
        root = ElementTree.fromstring(svg)
        _, _, width, height = map(float, (root.get("viewBox") or "").split())
        assert width == figures.WIDTH
        for left, top, right, bottom in map(box, drawn_in(root)):
            assert left >= -0.01, kind
            assert right <= width + 0.01, kind
            assert top >= -0.01, kind
            assert bottom <= height + 0.01, kind


@pytest.mark.parametrize("study", EVERY)
def test_no_text_lies_on_another(study: Study) -> None:
    for kind, svg in study.draw().items():
        boxes = [(box(text, 0.85), text.text) for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]
        for i, (a, said) in enumerate(boxes):
            for b, other in boxes[:i]:
                apart = a[0] >= b[2] or b[0] >= a[2] or a[1] >= b[3] or b[1] >= a[3]
                assert apart, (kind, said, other)


def drawn_in(root: Element) -> Iterator[Element]:
    for element in root:
        if element.tag != f"{SVG}defs":
            yield element


def box(element: Element, scale: float = 1) -> tuple[float, float, float, float]:
    """Left, top, right, bottom; of text about its letters, without what hangs below the line."""

    def value(name: str) -> float:
        return float(element.attrib[name])

    tag = element.tag.removeprefix(SVG)
    if tag == "rect":
        assert value("width") >= 0
        return value("x"), value("y"), value("x") + value("width"), value("y") + value("height")
    if tag == "circle":
        x, y, r = value("cx"), value("cy"), value("r")
        return x - r, y - r, x + r, y + r
    if tag == "line":
        xs, ys = sorted((value("x1"), value("x2"))), sorted((value("y1"), value("y2")))
        return xs[0], ys[0], xs[1], ys[1]
    assert tag == "text"
    size = float(element.get("font-size", figures.SIZE))
    width = scale * figures.text_width(element.text or "", size)
    left = value("x") - {"start": 0, "middle": width / 2, "end": width}[element.get("text-anchor", "start")]
    top, right, bottom = value("y") - 0.75 * size, left + width, value("y")
    turned = re.fullmatch(r"translate\((\S+) (\S+)\) rotate\(-90\)", element.get("transform", ""))
    if turned:
        x, y = map(float, turned.groups())
        return x + top, y - right, x + bottom, y - left
    return left, top, right, bottom


def test_ids_on_one_page_are_different() -> None:
    ids: dict[str, str] = {}
    page = [svg for study in STUDIES.values() for title in "ab" for svg in study.draw(title).values()]
    for svg in page:
        root = ElementTree.fromstring(svg)
        own = [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
        assert len(own) == len(set(own))
        assert not set(own) & set(ids)
        ids |= dict.fromkeys(own, svg)
        for element in root.iter():
            for value in element.attrib.values():
                for reference in re.findall(r"url\(#([^)]*)\)", value):
                    assert reference in own
    assert ids, "hatches"


def test_threads_draw_what_one_draws_alone() -> None:
    alone = {name: study.draw() for name, study in STUDIES.items()}
    with ThreadPoolExecutor(4) as pool:
        for name, drawn in pool.map(lambda name: (name, STUDIES[name].draw()), list(STUDIES) * 4):
            assert drawn == alone[name]


def test_hostile_words_stay_words_in_a_page() -> None:
    study = STUDIES["hostile names"]
    page = Page(f"<p>before</p>{''.join(study.draw(HOSTILE).values())}<p>after</p>")
    assert len(page.figures) == len(KINDS)
    for kind, (label, texts) in zip(KINDS, page.figures, strict=True):
        assert label.startswith(f"{HOSTILE}. ")
        assert f"{HOSTILE}" in label.removeprefix(HOSTILE)
        assert texts, kind
    assert page.text.endswith("after")


def test_rates_beside_chance() -> None:
    study = STUDIES["three models"]
    svg = study.draw()["rates"]
    label, texts = label_of(svg), texts_of(svg)
    expected = []
    for outcome, heading in OUTCOMES.items():
        said = []
        for model, rates in study.rates.items():
            r = rates[outcome]
            assert r.rate is not None
            assert r.low is not None
            assert r.high is not None
            interval = f"{percent(r.low)} to {percent(r.high)}"
            said.append(f"{model.replace('_', ' ')} {percent(r.rate)} % (95 % interval {interval})")
            expected.append(f"{percent(r.rate)} %")
        assert f"{heading}: {', '.join(said)}." in label
    assert [t for t in texts if re.fullmatch(r"\d+\.\d %", t)] == expected
    assert re.findall(r"(\w+) chance (\S+) %", label) == [
        (model.split("_")[-1], percent(rates[placebo].count / rates[placebo].n))
        for placebo in ("placebo_fooled", "placebo_reasonable")
        for model, rates in study.rates.items()
    ]
    assert texts.count("chance") == 1
    ticks = [e for e in ElementTree.fromstring(svg).iter(f"{SVG}line") if e.get("stroke-width") == "1.5"]
    assert len(ticks) == 6, "two outcomes have a level of chance"
    axis = [box(e)[0] for e in ElementTree.fromstring(svg).iter(f"{SVG}line") if e.get("stroke-opacity")][:5]
    for tick, rates in zip(ticks, study.rates.values(), strict=False):
        share = rates["placebo_fooled"].rate
        assert share is not None
        assert box(tick)[0] == pytest.approx(axis[0] + share * (axis[4] - axis[0]), abs=0.02)


def test_rates_where_nobody_answered() -> None:
    svg = STUDIES["no answers"].draw()["rates"]
    assert label_of(svg) == "A title. " + " ".join(
        f"{heading}: no answers yet." for heading in OUTCOMES.values()
    )
    assert texts_of(svg).count("no answers yet") == 9
    assert "chance" not in texts_of(svg)


def test_components_in_percent_and_number() -> None:
    study = STUDIES["five models, words"]
    svg = study.draw()["components"]
    label, texts = label_of(svg), texts_of(svg)
    widths = []
    for model, counts in study.components.items():
        total = sum(counts.values())
        values = [f"{COMPONENTS[part]} {n} ({percent(n / total)} %)" for part, n in counts.items()]
        assert f"{model.replace('_', ' ')}: of {total} answers {', '.join(values)}." in label
        widths += [n / total for n in counts.values() if n]
        for n in counts.values():
            if n / total > 0.1:
                place = texts.index(f"{percent(n / total)} %")
                assert str(n) in texts[place:]
    assert set(COMPONENTS.values()) <= set(texts)
    bars = [e for e in ElementTree.fromstring(svg).iter(f"{SVG}rect") if e.get("height") == "34"]
    drawn = [float(e.attrib["width"]) + 1 for e in bars if not (e.get("fill") or "").startswith("url")]
    assert drawn == pytest.approx([w * sum(drawn[:5]) for w in widths], abs=0.05)


def test_thirds_at_their_places() -> None:
    study = STUDIES["three models"]
    svg = study.draw()["thirds"]
    label, texts = label_of(svg), texts_of(svg)
    ys, shares = [float(e.attrib["cy"]) for e in ElementTree.fromstring(svg).iter(f"{SVG}circle")], []
    for model, by_outcome in study.thirds.items():
        said = []
        for third, r in zip(THIRDS, by_outcome["human_fooled"], strict=True):
            assert r.rate is not None
            assert r.low is not None
            assert r.high is not None
            shares.append(r.rate)
            interval = f"{percent(r.low)} to {percent(r.high)}"
            said.append(f"{third} {percent(r.rate)} % (95 % interval {interval})")
        assert f"{model.replace('_', ' ')}: {', '.join(said)}." in label
        assert f"{said[-1].split()[2]} %" in texts
        assert model.replace("_", " ") in texts
    slope = (ys[1] - ys[0]) / (shares[1] - shares[0])
    assert slope < 0
    assert ys == pytest.approx([ys[0] + slope * (share - shares[0]) for share in shares], abs=0.1)


def test_digits_cell_by_cell() -> None:
    study = STUDIES["three models"]
    svg = study.draw()["digits"]
    label, texts = label_of(svg), texts_of(svg)
    cells, fills = [], []
    for heading, by_label in (
        ("by original label", study.by_source),
        ("by the network’s answer", study.by_target),
    ):
        for model, rates in by_label.items():
            said = []
            for digit, r in rates.items():
                if r.rate is None:
                    said.append(f"{digit} no answers yet")
                    cells.append("–")
                    continue
                said.append(f"{digit} {percent(r.rate)} % of {r.n}")
                cells += [percent(r.rate), f"n {r.n}"]
                fills.append(figures.viridis(r.rate))
            assert f"{model.replace('_', ' ')}, {heading}: {', '.join(said)}." in label
    assert [t for t in texts if re.fullmatch(r"–|\d+\.\d|n \d+", t)] == cells
    shown = [e.get("fill") for e in ElementTree.fromstring(svg).iter(f"{SVG}rect")]
    assert shown[: len(fills)] == fills


def test_pairs_cell_by_cell() -> None:
    study = STUDIES["three models"]
    svg = study.draw()["pairs"]
    label, texts = label_of(svg), texts_of(svg)
    cells = [f"{k}/{n}" for rows in study.pairs.values() for row in rows for k, n in row if n]
    assert [t for t in texts if re.fullmatch(r"\d+/\d+", t)] == cells
    for model, rows in study.pairs.items():
        said = [f"{i} to {j} {k} of {n}" for i, row in enumerate(rows) for j, (k, n) in enumerate(row) if n]
        assert f"{model.replace('_', ' ')}: {', '.join(said)}." in label
    greyed = [e for e in ElementTree.fromstring(svg).iter(f"{SVG}rect") if e.get("fill-opacity")]
    assert len(greyed) == 30


def test_times_on_a_logarithmic_axis() -> None:
    study = STUDIES["three models"]
    svg = study.draw()["times"]
    label, texts = label_of(svg), texts_of(svg)
    medians = []
    for heading, times in (("labeling", study.label_ms), ("judging", study.verdict_ms)):
        for model, found in times.items():
            assert found.quantiles is not None
            seconds = [f"{half_up(ms / 1000, 1 if ms >= 1000 else 2)} s" for ms in found.quantiles]
            medians.append(seconds[2])
            values = ", ".join(
                f"{q:.0%} within {s}".replace("%", " %") for q, s in zip(QUANTILES, seconds, strict=True)
            )
            assert f"{model.replace('_', ' ')}, {heading}: of 110 answers {values}." in label
    assert [t for t in texts if re.fullmatch(r"\d+\.\d+ s", t)] == medians
    xs = [float(e.attrib["cx"]) for e in ElementTree.fromstring(svg).iter(f"{SVG}circle")][:6:2]
    logs = [math.log(found.quantiles[2]) for found in study.label_ms.values() if found.quantiles]
    assert (xs[2] - xs[0]) / (xs[1] - xs[0]) == pytest.approx(
        (logs[2] - logs[0]) / (logs[1] - logs[0]), abs=0.01
    )


@pytest.mark.parametrize("ms", [0.0, 1e-9, 1e9])
def test_any_time_has_a_place(ms: float) -> None:
    times = {"undefended": Times(1, [ms] * 5)}
    assert "of 1 answers 10 % within" in label_of(charts.times_figure(times, {}, "Times"))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_missing_is_said(kind: str) -> None:
    assert "o answers yet" in label_of(STUDIES["no answers"].draw()[kind])
    assert "–" in (texts := texts_of(STUDIES["no answers"].draw()[kind])) or "no answers yet" in texts


def test_texts_in_cells_stand_out() -> None:
    for fill in [figures.viridis(i / 100) for i in range(101)] + list(charts.PARTS.values()):
        lighter, darker = sorted((luminance(fill), 1.0 if figures.on(fill) == "#fff" else 0.0), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, fill


def test_grey_print_tells_the_parts_apart() -> None:
    lightness = [116 * luminance(fill) ** (1 / 3) - 16 for fill in charts.PARTS.values()]
    for i, a in enumerate(lightness):
        for b in lightness[:i]:
            assert abs(a - b) > 5


def luminance(color: str) -> float:
    channels = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def test_the_scale_is_viridis() -> None:
    import matplotlib

    of = matplotlib.colormaps["viridis"]
    for i in range(0, 256, 5):
        ours = figures.viridis(i / 255)
        assert [int(ours[k : k + 2], 16) / 255 for k in (1, 3, 5)] == pytest.approx(of(i)[:3], abs=0.06)


@pytest.mark.parametrize(
    ("ms", "said"), [(0, "0.00 s"), (349.9, "0.35 s"), (1250, "1.3 s"), (61000, "61.0 s")]
)
def test_seconds(ms: float, said: str) -> None:
    assert charts.in_seconds(ms) == said
    assert Decimal(said.split()[0]) >= 0


@pytest.mark.parametrize("lines", [1, 2])
def test_wrapped_words_fit(lines: int) -> None:
    for words in ("a", "a_name_of_a_model", "x" * 200, "猫" * 50, " ".join(["word"] * 40), ""):
        found = figures.wrapped(words, 100, lines)
        assert len(found) <= lines
        assert all(figures.text_width(line) <= 100 for line in found)
        if found and "…" not in found[-1]:
            assert " ".join(found).replace(" ", "") == words.replace("_", "").replace(" ", "")


def test_a_number_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot show nan"):
        figures.Canvas(10).dot(math.nan, 1, "red")


@pytest.fixture(scope="module")
def matplotlib_svg() -> str:
    """A figure as matplotlib draws it."""
    import io

    import matplotlib

    matplotlib.use("svg")
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.fonttype": "none", "text.parse_math": False, "text.color": figures.INK}):
        figure = Figure(figsize=(4, 2))
        ax = figure.subplots()
        ax.plot([0, 1], [1, 2], "o--", color=figures.INK, alpha=0.5)
        ax.set_title(HOSTILE)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Title": HOSTILE})
    return out.getvalue()


def test_every_style_that_matplotlib_set_is_there_as_an_attribute(matplotlib_svg: str) -> None:
    drawn = ElementTree.fromstring(matplotlib_svg[matplotlib_svg.index("<svg") :])
    shown = ElementTree.fromstring(figures._inline(matplotlib_svg, HOSTILE, "In words."))
    assert shown.get("aria-label") == f"{HOSTILE}. In words."
    assert (shown.get("role"), shown.get("width"), shown.get("height")) == ("img", "100%", None)
    assert figures.INK not in ElementTree.tostring(shown, encoding="unicode")
    rule = drawn.find(f"{SVG}defs/{SVG}style")
    assert rule is not None
    everywhere = re.fullmatch(r"\*\{([^{}]*)\}", rule.text or "")
    assert everywhere is not None, "a style sheet of one rule for all elements"
    for old, new in zip(visible(drawn), visible(shown), strict=True):
        assert (old[-1].tag, old[-1].text) == (new[-1].tag, new[-1].text)
        assert "style" not in new[-1].attrib
        expected = declarations(everywhere.group(1)) | declarations(old[-1].get("style", ""))
        for name, value in expected.items():
            inherited = [e.attrib[name] for e in new if name in e.attrib]
            assert inherited[-1:] == [value.replace(figures.INK, "currentColor")], (old[-1].tag, name)


def visible(root: Element, above: tuple[Element, ...] = ()) -> Iterator[tuple[Element, ...]]:
    """Every element with those around it, outermost first."""
    if root.tag not in (f"{SVG}metadata", f"{SVG}style"):
        yield (*above, root)
        for child in root:
            yield from visible(child, (*above, root))


def declarations(css: str) -> dict[str, str]:
    found = dict(re.findall(r"([a-z-]+): ([^;]+)", css))
    assert set(found) <= {
        *("fill", "fill-opacity", "stroke", "stroke-opacity", "stroke-width", "stroke-linecap"),
        *("stroke-linejoin", "stroke-dasharray", "stroke-dashoffset", "stroke-miterlimit", "opacity"),
        *("font-size", "font-family", "font-weight", "font-style", "text-anchor"),
    }, "each of these is an attribute as well"
    return found
