"""The scripts have no words of their own: the page carries them, from its catalog (static/texts.js)."""

import re

from app.settings import ROOT

RESEARCHERS = "live.js"  # on an English page
CODE = re.compile(
    r"""//[^\n]*|/\*.*?\*/"""  # comments
    r"""|[(=,:&|!?{;]\s*/(?![/*])(?:\\.|\[(?:\\.|[^\]\\])*\]|[^/\\\n])+/[a-z]*"""  # regular expressions
    r"""|"(?P<double>(?:\\.|[^"\\])*)"|'(?P<single>(?:\\.|[^'\\])*)'|`(?P<template>(?:\\.|[^`\\])*)`""",
    re.S,
)
# Where what follows is shown: a property, a function of the browser's, our own say(id, words).
SHOWING = re.compile(
    r"(?:(?:textContent|innerText|innerHTML|title|alt|placeholder|ariaLabel)\s*\+?=\s*"
    r"|(?:alert|confirm|prompt|setCustomValidity|append|createTextNode)\("
    r"|say\([^,]*,(?:(?!text\()[^\n;])*)$"
)
# Media types, selectors.
NO_WORDS = re.compile(r"use strict|[a-z]+/[a-z]+|[a-z-]*[#.\[:][\w#.\[\]=:,> ()~-]*")


def words(script: str) -> list[str]:
    """The literals of a script that look like words for people, or are put where people see them."""
    found = []
    for match in CODE.finditer(script):
        literal = match["double"] or match["single"] or match["template"] or ""
        shown = re.sub(r"\$\{[^}]*\}|\\.", "", literal)
        if not any(letter.isalpha() for letter in shown):
            continue
        sentence = re.search(r"[A-Za-z]{2,}[,;:]? +[A-Za-z]{2,}|[^\W\d_][.!?…]$|[^\x00-\x7f]", shown)
        before = script[max(0, match.start() - 80) : match.start()]
        if before.endswith("Error("):  # thrown, and caught by a script
            continue
        if (sentence and not NO_WORDS.fullmatch(shown)) or SHOWING.search(before):
            found.append(literal)
    return found


def test_words_in_a_script_are_found() -> None:
    for script, word in (
        ('status.textContent = "Saved";', "Saved"),
        ('box.setCustomValidity("Wrong")', "Wrong"),
        ('const NOTE = "Not saved yet";', "Not saved yet"),
        ("const NOTE = 'Try again.';", "Try again."),
        ("const NOTE = `${n} of ${total} stored`;", "${n} of ${total} stored"),
        ('const NOTE = "Saving …";', "Saving …"),
        ('const NOTE = "已保存";', "已保存"),
        ('say("saved", all ? "Saved" : "")', "Saved"),
        ('x.replace(/"/g, ""); const NOTE = "Not saved yet";', "Not saved yet"),
    ):
        assert words(script) == [word], script
    assert words('say("saved", text("saved")); // Not saved yet\nfind(".grids img, .a b")') == []


def test_the_scripts_have_no_words_of_their_own() -> None:
    scripts = sorted(path for path in (ROOT / "static").glob("*.js") if path.name != RESEARCHERS)
    assert scripts
    assert {path.name: words(path.read_text(encoding="utf-8")) for path in scripts} == {
        path.name: [] for path in scripts
    }


def test_every_text_that_a_script_asks_for_is_on_its_page() -> None:
    """Some are asked for only when much goes wrong; then is no time to find that they are missing."""
    for template, scripts in (
        ("_trial.html", ("session.js", "questions.js")),
        ("commenting.html", ("comment.js",)),
    ):
        page = (ROOT / "templates" / template).read_text(encoding="utf-8")
        carried = set(re.findall(r'^ *"(\w+)": _\(', page, re.M))
        code = "".join((ROOT / "static" / script).read_text(encoding="utf-8") for script in scripts)
        asked = {
            name for call in re.findall(r"\btext\(([^{}\n]*)", code) for name in re.findall(r'"(\w+)"', call)
        }
        assert carried
        assert asked <= carried, template
        assert all(f'"{name}"' in code for name in carried), template
