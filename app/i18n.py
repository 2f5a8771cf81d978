"""The languages of the participant's pages: which one a page is in, and its texts (gettext catalogs)."""

import io
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache

from babel import negotiate_locale
from babel.dates import format_datetime
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from babel.support import NullTranslations, Translations
from jinja2 import Environment, pass_context
from jinja2.runtime import Context

from app.settings import ROOT

SOURCE = "en"  # what the code and the templates are written in
LANGUAGES = {SOURCE: "English", "zh": "简体中文"}
LANGUAGE_TAGS = {SOURCE: "en", "zh": "zh-Hans"}  # for the lang attribute
CATALOGS = ROOT / "app" / "translations"  # <language>.po


@cache
def catalog(language: str) -> NullTranslations:
    """The texts of one of LANGUAGES; the .po file is compiled on first use: there is no second file to keep."""
    if language == SOURCE:
        return NullTranslations()
    with (CATALOGS / f"{language}.po").open("rb") as file:
        messages = read_po(file, locale=language)
    compiled = io.BytesIO()
    write_mo(compiled, messages)
    compiled.seek(0)
    return Translations(compiled)


def translate(language: str, message: str, **values: object) -> str:
    """`message` in that language, its %(names)s filled in."""
    text = catalog(language).gettext(message)
    return text % values if values else text


def N_(message: str) -> str:
    """Marks a text for the catalog that is translated later, where it is shown."""
    return message


def preferred(accept_language: str, offered: Sequence[str]) -> str:
    """The one of `offered` that a browser's Accept-Language header likes best; the first where it likes none."""
    language_range = r"\s*([A-Za-z]{1,8}(?:-[A-Za-z0-9]{1,8})*)\s*(?:;\s*q\s*=\s*([01](?:\.\d*)?))?\s*"
    wanted: list[tuple[float, str]] = []
    for part in accept_language[:500].split(","):
        found = re.fullmatch(language_range, part)
        if found and float(found[2] or 1) > 0:
            wanted.append((-float(found[2] or 1), found[1].lower()))
    tags = [tag for _, tag in sorted(wanted, key=lambda item: item[0])]
    return negotiate_locale(tags, list(offered), sep="-") or offered[0]


def install(environment: Environment) -> None:
    """Templates translate with _() and {% trans %} into the `language` of their context."""
    environment.add_extension("jinja2.ext.i18n")
    environment.policies["ext.i18n.trimmed"] = True
    environment.globals |= {"language": SOURCE, "languages": LANGUAGES, "language_tags": LANGUAGE_TAGS}

    @pass_context
    def gettext(context: Context, message: str) -> str:
        return str(catalog(context["language"]).gettext(message))

    @pass_context
    def ngettext(context: Context, one: str, many: str, n: int) -> str:
        return str(catalog(context["language"]).ngettext(one, many, n))

    @pass_context
    def moment(context: Context, value: datetime) -> str:
        return f"{format_datetime(value, 'medium', tzinfo=UTC, locale=context['language'])} UTC"

    environment.filters["moment"] = moment
    environment.install_gettext_callables(gettext, ngettext, newstyle=True)  # type: ignore[attr-defined]
