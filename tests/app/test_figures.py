"""The dashboard's figures: what matplotlib drew, in words too, without the inline styles that the policy blocks."""

import re
from collections.abc import Iterator
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pytest

from app import figures
from app.stats import Rate
from tests.app.reading import Page

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = """"><b style="color: red">$x$ & 'y'</b>"""
OUTCOMES = {"fooled": "Fooled", "hostile": HOSTILE}


def rate(percent: int) -> Rate:
    share = percent / 100
    return Rate(percent, 100, share, max(0, share - 0.1), min(1, share + 0.1), 1.0, None)


RATES = {
    "undefended": {"fooled": rate(5), "hostile": rate(90)},
    "distilled": {"fooled": rate(50), "hostile": Rate(0, 0, None, None, None, None, "no answers yet")},
    "a_model_of_their_own": {"fooled": rate(100), "hostile": rate(0)},
}


@pytest.fixture(scope="module")
def drawn() -> Element:
    """The figure as matplotlib draws it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "_inline", lambda svg, *words: svg)
        svg = figures.rates_figure(RATES, OUTCOMES, HOSTILE)
    return ElementTree.fromstring(svg[svg.index("<svg") :])


@pytest.fixture(scope="module")
def shown() -> Element:
    """The figure as the page has it."""
    return ElementTree.fromstring(figures.rates_figure(RATES, OUTCOMES, HOSTILE))


def test_nothing_in_it_needs_an_inline_style(shown: Element) -> None:
    for element in shown.iter():
        assert element.tag not in (f"{SVG}style", f"{SVG}script", f"{SVG}metadata")
        for name in element.attrib:
            assert name != "style"
            assert not name.startswith("on")


def test_every_style_that_matplotlib_set_is_there_as_an_attribute(drawn: Element, shown: Element) -> None:
    rule = drawn.find(f"{SVG}defs/{SVG}style")
    assert rule is not None
    everywhere = re.fullmatch(r"\*\{([^{}]*)\}", rule.text or "")
    assert everywhere is not None, "a style sheet of one rule for all elements"
    for old, new in zip(visible(drawn), visible(shown), strict=True):
        assert (old[-1].tag, old[-1].text) == (new[-1].tag, new[-1].text)
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
        *("stroke-linejoin", "stroke-dasharray", "stroke-miterlimit", "opacity"),
        *("font-size", "font-family", "font-weight", "font-style", "text-anchor"),
    }, "each of these is an attribute as well"
    return found


def test_it_says_in_words_what_it_shows(shown: Element) -> None:
    label = shown.get("aria-label") or ""
    fooled, hostile = label.removeprefix(f"{HOSTILE}. ").split(f". {HOSTILE}: ")
    assert fooled.startswith("Fooled: undefended 5.0 % (95 % interval 0.0 to 15.0), distilled 50.0 %")
    assert "distilled" not in hostile
    assert hostile.endswith("a model of their own 0.0 % (95 % interval 0.0 to 10.0).")
    assert shown.get("role") == "img"
    assert (shown.get("width"), shown.get("height")) == ("100%", None)


def test_hostile_words_stay_words_in_a_page() -> None:
    page = Page(f"<p>before</p>{figures.rates_figure(RATES, OUTCOMES, HOSTILE)}<p>after</p>")
    ((label, texts),) = page.figures
    assert label.startswith(HOSTILE)
    assert HOSTILE in texts
    assert {"undefended", "a model of their own", "5.0 %", "Fooled"} <= set(texts)
    assert page.text.endswith("after")


def test_its_ink_is_the_pages_and_its_colors_are_the_models(shown: Element) -> None:
    text = ElementTree.tostring(shown, encoding="unicode")
    assert figures.INK not in text
    assert {e.get("fill") for e in shown.iter(f"{SVG}text")} == {"currentColor"}
    lines = {e.get("stroke") for e in shown.iter(f"{SVG}path") if e.get("stroke-linecap") == "round"}
    assert lines == {figures.COLORS["undefended"], figures.COLORS["distilled"], "#777777"}
