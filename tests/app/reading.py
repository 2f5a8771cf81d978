"""The researcher's page as somebody reads it, and what it must say, given the JSON."""

import math
import re
from fractions import Fraction
from html.parser import HTMLParser
from typing import Any

from app.outcomes import OUTCOMES
from app.sheet import FIGURE_OUTCOMES


class Page(HTMLParser):
    """The page as somebody reads it: its tables cell by cell, its sentences, its figures' words."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}  # by the label of the region around each
        self.captions: dict[str, str] = {}
        self.findings: list[str] = []
        self.tiles: list[str] = []
        self.figures: list[tuple[str, list[str]]] = []  # aria-label, texts
        self.text = ""
        self._region = ""
        self._open: list[list[str]] = []  # texts of the open cells, captions, ...
        self.feed(html)
        self.text = _squeeze(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "div" and values.get("role") == "region":
            self._region = values.get("aria-label") or ""
            self.tables[self._region] = []
        elif tag == "tr":
            self.tables[self._region].append([])
        elif tag == "svg":
            self.figures.append((values.get("aria-label") or "", []))
        if tag in ("td", "th", "caption", "p", "li", "text"):
            self._open.append([tag if values.get("class") != "finding" else "finding"])
        elif tag == "br":
            self.handle_data(" ")

    def handle_data(self, data: str) -> None:
        self.text += data
        for texts in self._open:
            texts.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th", "small"):
            self.text += " "
        if tag not in ("td", "th", "caption", "p", "li", "text"):
            return
        kind, *texts = self._open.pop()
        said = _squeeze("".join(texts))
        if kind in ("td", "th"):
            self.tables[self._region][-1].append(said)
        elif kind == "caption":
            self.captions[self._region] = said
        elif kind == "finding":
            self.findings.append(said)
        elif kind == "li":
            self.tiles.append(said)
        elif kind == "text":
            self.figures[-1][1].append(said)


def _squeeze(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def half_up(x: float | Fraction, places: int) -> str:
    """To the nearest, ties away from zero, of the fraction with a small denominator that the float stands for."""
    exact = Fraction(x).limit_denominator(10**9) * 10**places
    whole = math.floor(abs(exact) + Fraction(1, 2))
    return f"{'-' if exact < 0 and whole else ''}{whole // 10**places}.{whole % 10**places:0{places}d}"


def percent(x: float) -> str:
    return half_up(100 * Fraction(x).limit_denominator(10**9), 1)


def points(x: float) -> str:
    text = percent(x)
    return text if text == "0.0" else text.replace("-", "−") if x < 0 else f"+{text}"


def p_value(p: float | None) -> str:
    if p is None:
        return "–"
    return "< 0.0001" if p < 0.0001 else half_up(p, 4)


def spaced(name: str) -> str:
    return name.replace("_", " ")


def assert_page_says(page: Page, found: dict[str, Any]) -> None:
    """Every cell of rates and comparisons, the tiles and the figures are the JSON's, rounded as printed."""
    people = found["participants"]
    assert page.tiles[:6] == [
        f"{people['started']} started",
        f"{people['finished']} finished",
        f"{people['excluded']} excluded by rule",
        f"{people['withdrawn']} withdrawn",
        f"{found['responses']} images labeled, practice apart",
        f"{people['included']} / {found['target_participants']} complete and included, of the target N",
    ]
    figures = {label.split(". ")[0]: (label, texts) for label, texts in page.figures}
    assert len(figures) == len(page.figures) == (0 if found["masked"] else 6 * len(found["packs"]))
    for pack_name, pack in found["packs"].items():
        columns = {"all models together": pack["together"]} if found["masked"] else pack["models"]
        header, *rows = page.tables[f"Rates per model, {pack_name}"]
        assert header == ["Outcome", *map(spaced, columns)]
        assert len(rows) == len(OUTCOMES)
        for (outcome, said), row in zip(OUTCOMES.items(), rows, strict=True):
            assert row[0] == f"{said.title} {said.meaning}" + "; descriptive only" * said.descriptive
            for cell, rates in zip(row[1:], columns.values(), strict=True):
                assert cell in rate_cells(rates, outcome, said.chance)
        assert (f"Comparisons, {pack_name}" in page.tables) == (not found["masked"])
        assert (pack["views"] is None) == found["masked"]
        if found["masked"]:
            assert pack["comparisons"] == []
            continue
        _assert_rates_figure(*figures[f"Rates per model with 95 % intervals, {pack_name}"], pack["models"])
        _, *rows = page.tables[f"Comparisons, {pack_name}"]
        ordered = sorted(pack["comparisons"], key=lambda c: not c["primary"])
        assert len(rows) == len(ordered)
        for row, c in zip(rows, ordered, strict=True):
            interval = c["reason"] if c["low"] is None else f"{points(c['low'])} to {points(c['high'])}"
            assert row == [
                f"{spaced(c['a'])} − {spaced(c['b'])}" + (" primary" if c["primary"] else ""),
                OUTCOMES[c["outcome"]].title,
                str(c["participants"]),
                "–" if c["difference"] is None else points(c["difference"]),
                interval,
                p_value(c["p"]),
                p_value(c["p_mid"]),
                "primary" if c["primary"] else p_value(c["p_holm"]),
                c["reason_new_images"] if c["p_new_images"] is None else p_value(c["p_new_images"]),
                p_value(c["p_naive"]),
                p_value(c["p_naive_z"]),
            ]


def rate_cells(rates: dict[str, Any], outcome: str, chance: str | None) -> list[str]:
    """How a rate may stand in a table."""
    r = rates[outcome]
    if r["rate"] is None:
        return ["no answers yet", "not asked"]
    said = f"{percent(r['rate'])} {percent(r['low'])} to {percent(r['high'])} ({r['count']} of {r['n']})"
    if chance and rates[chance]["rate"] is not None:
        said += f" chance {percent(rates[chance]['rate'])}"
    return [said]


def _assert_rates_figure(label: str, texts: list[str], models: dict[str, Any]) -> None:
    shown = []
    numbers = 0
    for outcome, heading in FIGURE_OUTCOMES.items():
        if heading not in texts:
            assert heading not in label
            continue
        for model, rates in models.items():
            r = rates[outcome]
            if r["rate"] is None:
                continue
            interval = f"95 % interval {percent(r['low'])} to {percent(r['high'])}"
            assert f"{spaced(model)} {percent(r['rate'])} % ({interval})" in label
            chance = OUTCOMES[outcome].chance
            if chance and rates[chance]["rate"] is not None:
                assert f"{spaced(model)} chance {percent(rates[chance]['rate'])} %" in label
                numbers += 1
            shown.append(f"{percent(r['rate'])} %")
            numbers += 1
    assert len(re.findall(r"\d+\.\d %", label)) == numbers, "and no other number"
    assert [t for t in texts if re.fullmatch(r"[\d.]+ %", t) and t != "100 %"] == shown


def assert_no_nonsense(page: Page) -> None:
    assert not re.search(r"\b(nan|None|null|inf|Infinity|Undefined)\b|−0\.0\b|[+-]0\.0\b", page.text)
    assert "  " not in page.text
    assert not re.search(r"[(\[] | [,.;)\]]", page.text.replace("· ", "")), "spacing around punctuation"
