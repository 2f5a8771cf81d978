"""The dashboard's figures: they show and say the data, cut nothing off and need no style that the policy blocks."""

import functools
import math
import random
import re
from collections.abc import Iterator
from decimal import Decimal
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import matplotlib
import pytest
from matplotlib.colors import to_hex

from app import charts, drawing, figures
from app.outcomes import COMPONENTS
from app.stats import Rate, exact_interval
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
Box = tuple[float, float, float, float]
DIGITS = tuple("0123456789")
WORDS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def rate(count: int, n: int) -> Rate:
    if not n:
        return Rate(0, 0, None, None, None, None, "no answers yet")
    return Rate(count, n, count / n, *exact_interval(count, n), 1.0, None)


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

    @functools.cache  # noqa: B019
    def draw(self, title: str = "A title") -> dict[str, str]:
        return self.drawn_anew(title)

    def drawn_anew(self, title: str) -> dict[str, str]:
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
TAGS = {"svg", "path", "text", "circle", "defs", "rect", "pattern"}
NUMBER = r"-?[\d.]+(?:e-?\d+)?"
EVERY = [pytest.param(study, id=name) for name, study in STUDIES.items()]
KINDS = list(STUDIES["three models"].draw())


def label_of(svg: str) -> str:
    return ElementTree.fromstring(svg).get("aria-label") or ""


def texts_of(svg: str) -> list[str]:
    return [text.text or "" for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def paths_of(svg: str, **attributes: str) -> list[Element]:
    """The lines and areas that are drawn with these attributes."""
    wanted = {name.replace("_", "-"): value for name, value in attributes.items()}
    drawn = (e for e in drawn_in(ElementTree.fromstring(svg)) if e.tag == f"{SVG}path")
    return [e for e in drawn if wanted.items() <= e.attrib.items()]


def dots_of(svg: str) -> list[tuple[float, float]]:
    """The middles of the dots."""
    dots = ElementTree.fromstring(svg).iter(f"{SVG}circle")
    return [(float(e.attrib["cx"]), float(e.attrib["cy"])) for e in dots]


def dashes_of(svg: str) -> list[Element]:
    """What stands in cells without answers."""
    return paths_of(svg, stroke_opacity="0.5")


def lines_of(svg: str) -> list[Box]:
    """The lines of the grid."""
    return [box(e) for e in paths_of(svg, stroke_opacity="0.15")]


def middle(element: Element) -> tuple[float, float]:
    left, top, right, bottom = box(element)
    return (left + right) / 2, (top + bottom) / 2


@pytest.mark.parametrize("study", EVERY)
def test_nothing_in_them_needs_an_inline_style(study: Study) -> None:
    for svg in study.draw(HOSTILE).values():
        root = ElementTree.fromstring(svg)
        assert (root.get("role"), root.get("width"), root.get("height")) == ("img", "100%", None)
        assert (root.get("aria-label") or "").startswith(f"{HOSTILE}. ")
        for element in root.iter():
            assert element.tag.removeprefix(SVG) in TAGS
            assert not set(element.attrib) & {"style", "font-family"}
            for name, value in element.attrib.items():
                assert not name.startswith("on")
                assert name == "aria-label" or not re.search(r"data:|//", value)


@pytest.mark.parametrize("study", EVERY)
def test_everything_drawn_lies_inside_the_figure(study: Study) -> None:
    for kind, svg in study.draw().items():
        assert not re.search(r"\b(nan|inf|None)\b", svg), kind
        root = ElementTree.fromstring(svg)
        _, _, width, height = map(float, (root.get("viewBox") or "").split())
        assert width == drawing.WIDTH
        for left, top, right, bottom in (box(e, 1) for e in drawn_in(root)):
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
    return (element for element in root if element.tag != f"{SVG}defs")


def box(element: Element, scale: float = 1) -> Box:
    """Left, top, right, bottom; of text about its letters, without what hangs below the line."""
    tag = element.tag.removeprefix(SVG)
    if tag == "path":
        numbers = [float(x) for x in re.findall(NUMBER, element.attrib["d"])]
        xs, ys = numbers[::2], numbers[1::2]
        return min(xs), min(ys), max(xs), max(ys)
    if tag == "circle":
        x, y, r = (float(element.attrib[name]) for name in ("cx", "cy", "r"))
        return x - r, y - r, x + r, y + r
    assert tag == "text"
    size = float(element.attrib["font-size"].removesuffix("px"))
    width = scale * drawing.text_width(element.text or "", size)
    left = -{"start": 0, "middle": width / 2, "end": width}[element.attrib["text-anchor"]]
    x, y = (float(element.attrib[name]) for name in "xy")
    turned = element.get("transform")
    if turned:
        assert turned == f"rotate(-90 {element.attrib['x']} {element.attrib['y']})"
        return x - 0.75 * size, y - left - width, x, y - left
    return x + left, y - 0.75 * size, x + left + width, y


def test_ids_on_one_page_are_different() -> None:
    ids: dict[str, str] = {}
    page = [svg for study in STUDIES.values() for svg in study.draw().values()]
    page += STUDIES["three models"].draw(HOSTILE).values()
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
        assert all(f"#{name}" in svg for name in own), "no other"
    assert ids, "hatches"


@pytest.mark.parametrize("study", EVERY)
def test_texts_are_in_the_pages_color_or_on_one_of_ours(study: Study) -> None:
    for svg in study.draw().values():
        painted = [box(e) for e in paths_of(svg) if re.fullmatch("#[0-9a-f]{6}", e.get("fill", "#000000"))]
        painted += [box(e) for e in paths_of(svg) if e.get("fill", "").startswith("url")]
        for text in ElementTree.fromstring(svg).iter(f"{SVG}text"):
            fill, (x, y) = text.get("fill", "#000000"), middle(text)
            assert fill in ("currentColor", "#000000", "#ffffff")
            if fill != "currentColor":
                assert any(b[0] <= x <= b[2] and b[1] <= y <= b[3] for b in painted), text.text


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
    ticks = paths_of(svg, stroke_width="1.5")
    assert len(ticks) == 6, "two outcomes have a level of chance"
    grid = [line[0] for line in lines_of(svg)]
    placebos = ("placebo_fooled", "placebo_reasonable")
    levels = [(i, rates[p].rate) for i, p in enumerate(placebos) for rates in study.rates.values()]
    rated = [(i, rates[o].rate) for i, o in enumerate(OUTCOMES) for rates in study.rates.values()]
    xs = [box(tick)[0] for tick in ticks] + [x for x, _ in dots_of(svg)]
    for x, (i, share) in zip(xs, levels + rated, strict=True):
        assert share is not None
        assert x == pytest.approx(grid[5 * i] + share * (grid[5 * i + 4] - grid[5 * i]), abs=0.02)
    intervals = [box(e) for e in paths_of(svg, stroke_width="3")]
    ends = [(r[o].low, r[o].high) for o in OUTCOMES for r in study.rates.values()]
    for k, (drawn, (low, high)) in enumerate(zip(intervals, ends, strict=True)):
        start, stop = grid[k // 3 * 5], grid[k // 3 * 5 + 4]
        assert low is not None
        assert high is not None
        assert drawn[0] == pytest.approx(start + low * (stop - start), abs=0.02)
        assert drawn[2] == pytest.approx(start + high * (stop - start), abs=0.02)


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
    tall = [e for e in paths_of(svg) if box(e)[3] - box(e)[1] == pytest.approx(34, abs=0.01)]
    bars = [box(e) for e in tall if e.get("fill") != "none"]
    edges = [box(e) for e in tall if e.get("fill") == "none"]
    grid = [line[0] for line in lines_of(svg)]
    whole = grid[4] - grid[0]
    assert [(e[0], e[2]) for e in edges] == [pytest.approx((grid[0], grid[4]), abs=0.05)] * len(edges)
    assert len(edges) == sum(any(counts.values()) for counts in study.components.values()) > 1
    assert [b[2] - b[0] for b in bars] == pytest.approx([w * whole - 1 for w in widths], abs=0.05)
    assert bars[0][0] == pytest.approx(grid[0], abs=0.01)


def test_thirds_at_their_places() -> None:
    study = STUDIES["three models"]
    svg = study.draw()["thirds"]
    label, texts = label_of(svg), texts_of(svg)
    ys, shares = [y for _, y in dots_of(svg)], []
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
    bottom, *_, top = [line[1] for line in lines_of(svg)]
    assert "100 %" in texts
    assert ys == pytest.approx([bottom - share * (bottom - top) for share in shares], abs=0.02)


def test_digits_cell_by_cell() -> None:
    study = STUDIES["three models"]
    svg = study.draw()["digits"]
    label, texts = label_of(svg), texts_of(svg)
    cells, fills, missing = [], [], 0
    viridis = matplotlib.colormaps["viridis"]
    for heading, by_label in (
        ("by original label", study.by_source),
        ("by the network’s answer", study.by_target),
    ):
        for model, rates in by_label.items():
            said = []
            for digit, r in rates.items():
                if r.rate is None:
                    said.append(f"{digit} no answers yet")
                    missing += 1
                    continue
                said.append(f"{digit} {percent(r.rate)} % of {r.n}")
                cells += [percent(r.rate), f"n {r.n}"]
                fills.append(to_hex(viridis(r.rate)))
            assert f"{model.replace('_', ' ')}, {heading}: {', '.join(said)}." in label
    drawn = [e for e in ElementTree.fromstring(svg).iter(f"{SVG}text") if e.text in cells]
    assert [e.text for e in drawn] == cells
    assert texts.count("–") == missing
    squares = [e for e in paths_of(svg) if box(e)[3] - box(e)[1] == pytest.approx(33, abs=0.01)]
    assert [e.get("fill") for e in squares] == fills
    for k, square in enumerate(squares):
        left, top, right, bottom = box(square)
        for text in drawn[2 * k : 2 * k + 2]:
            x, y = middle(text)
            assert x == pytest.approx((left + right) / 2, abs=0.02)
            assert top < y < bottom


def test_pairs_cell_by_cell() -> None:
    study = STUDIES["three models"]
    svg = study.draw()["pairs"]
    label, texts = label_of(svg), texts_of(svg)
    cells = [f"{k}/{n}" for rows in study.pairs.values() for row in rows for k, n in row if n]
    assert [t for t in texts if re.fullmatch(r"\d+/\d+", t)] == cells
    for model, rows in study.pairs.items():
        said = [f"{i} to {j} {k} of {n}" for i, row in enumerate(rows) for j, (k, n) in enumerate(row) if n]
        assert f"{model.replace('_', ' ')}: {', '.join(said)}." in label
    assert len(paths_of(svg, fill_opacity="0.15")) == 30
    empty = [n for rows in study.pairs.values() for row in rows for _, n in row].count(0)
    assert len(dashes_of(svg)) == empty - 30
    viridis = matplotlib.colormaps["viridis"]
    fills = [to_hex(viridis(k / n)) for rows in study.pairs.values() for row in rows for k, n in row if n]
    squares = [e for e in paths_of(svg) if box(e)[3] - box(e)[1] == pytest.approx(21, abs=0.01)]
    assert [e.get("fill") for e in squares if "fill-opacity" not in e.attrib] == fills


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
    xs = [x for x, _ in dots_of(svg)][:6:2]
    grid = [line[0] for line in lines_of(svg)]
    said = [t.removesuffix(" s") for t in texts if re.fullmatch(r"\d+|0\.\d|\d+ s", t)]
    ticks = [math.log(float(t)) for t in said[: len(grid) // 2]]
    pitch = (grid[len(ticks) - 1] - grid[0]) / (ticks[-1] - ticks[0])
    assert grid[: len(ticks)] == pytest.approx([grid[0] + pitch * (t - ticks[0]) for t in ticks], abs=0.02)
    medians_s = [found.quantiles[2] / 1000 for found in study.label_ms.values() if found.quantiles]
    assert xs == pytest.approx([grid[0] + pitch * (math.log(m) - ticks[0]) for m in medians_s], abs=0.02)


@pytest.mark.parametrize("ms", [0.0, 1e-9, 1e9])
def test_any_time_has_a_place(ms: float) -> None:
    times = {"undefended": Times(1, [ms] * 5)}
    assert "of 1 answers 10 % within" in label_of(charts.times_figure(times, {}, "Times"))


def test_a_study_without_verdicts_has_no_times_of_them() -> None:
    times = {"undefended": Times(1, [500.0] * 5)}
    assert "judging: no answers yet" in label_of(charts.times_figure(times, {}, "Times"))
    assert "judging" not in charts.times_figure(times, None, "Times")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_missing_is_said(kind: str) -> None:
    assert "o answers yet" in label_of(STUDIES["no answers"].draw()[kind])
    svg = STUDIES["no answers"].draw()[kind]
    assert {"–", "no answers yet"} & set(texts_of(svg)) or len(dashes_of(svg)) == 270


def test_texts_in_cells_stand_out() -> None:
    scale = [to_hex(color) for color in matplotlib.colormaps["viridis"](range(256))]
    for fill in scale + list(charts.PARTS.values()):
        lighter, darker = sorted((luminance(fill), luminance(figures.on(fill))), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, fill


def test_gray_print_tells_the_parts_apart() -> None:
    lightness = [116 * luminance(fill) ** (1 / 3) - 16 for fill in charts.PARTS.values()]
    for i, a in enumerate(lightness):
        for b in lightness[:i]:
            assert abs(a - b) > 5


def luminance(color: str) -> float:
    channels = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def test_the_scale_runs_from_the_first_to_the_last_color() -> None:
    for kind in ("digits", "pairs"):
        steps = [e for e in paths_of(STUDIES["no models"].draw()[kind]) if box(e)[3] - box(e)[1] == 10]
        assert (steps[0].get("fill"), steps[-1].get("fill")) == ("#440154", "#fde725")
        assert 20 < len(steps) < 50
        lefts, rights = ([box(e)[side] for e in steps] for side in (0, 2))
        assert all(a < b <= end for a, b, end in zip(lefts, lefts[1:], rights, strict=False)), "no gap"


@pytest.mark.parametrize(
    ("ms", "said"), [(0, "0.00 s"), (349.9, "0.35 s"), (1250, "1.3 s"), (61000, "61.0 s")]
)
def test_seconds(ms: float, said: str) -> None:
    assert charts.in_seconds(ms) == said
    assert Decimal(said.split()[0]) >= 0


@pytest.mark.parametrize("lines", [1, 2])
def test_wrapped_words_fit(lines: int) -> None:
    for words in ("a", "a_name_of_a_model", "x" * 200, "猫" * 50, " ".join(["word"] * 40), ""):
        found = drawing.wrapped(words, 100, lines)
        assert len(found) <= lines
        assert all(drawing.text_width(line) <= 100 for line in found)
        if found and "…" not in found[-1]:
            assert " ".join(found).replace(" ", "") == words.replace("_", "").replace(" ", "")


def test_a_line_is_interrupted_where_there_is_no_number() -> None:
    one = drawing.Drawing(10)
    one.line([(0, 1), (2, 3), (4, math.nan), (6, 7), (8, 9)])
    one.line([(0, math.nan), (1, 1)])
    assert [e.attrib["d"] for e in paths_of(one.inline("", ""))] == ["M 0 1 L 2 3 M 6 7 L 8 9"]


def test_a_file_is_black_on_white() -> None:
    one = drawing.Drawing(10)
    one.text(1, 2, HOSTILE)
    root = ElementTree.fromstring(one.alone(HOSTILE))
    assert (root.get("width"), root.get("height"), root.get("color")) == ("720", "10", "#000000")
    assert [e.text for e in root.iter() if e.text] == [HOSTILE, HOSTILE], "the title and the text"
    assert root.find(f"{SVG}rect[@fill='#ffffff']") is not None
