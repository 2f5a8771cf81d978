"""The documentation says what the code does."""

import re
import tomllib
from collections.abc import Iterator
from typing import get_args

from pydantic import BaseModel

from app.definition import Definition
from app.recruiters import FILLERS, PERSONAL, RECRUITER_KEYS
from app.settings import ROOT

GUIDE = (ROOT / "docs" / "study-file.md").read_text(encoding="utf-8")


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every key of the study file, and its default."""
    for name, field in model.model_fields.items():
        inner = next(
            (
                t
                for t in (field.annotation, *get_args(field.annotation))
                if isinstance(t, type) and issubclass(t, BaseModel)
            ),
            None,
        )
        if inner is None or name == "translations":
            yield prefix + name, None if field.is_required() else field.get_default(call_default_factory=True)
        else:
            yield from keys(inner, f"{prefix}{name}.")


def test_every_key_of_the_study_file_is_documented_with_its_default() -> None:
    rows = dict(re.findall(r"^\| (`.+?`) \| (.*?) \|", GUIDE, re.M))
    documented = {key: default for names, default in rows.items() for key in re.findall(r"`([^`]+)`", names)}
    documented["translations"] = documented.pop("translations.zh")
    found = dict(keys(Definition))
    assert set(documented) == set(found)
    for key, default in found.items():
        if isinstance(default, bool | int | str) and not key.startswith("primary."):
            said = documented[key].strip('"')
            assert said == str(default).lower(), key


def test_the_links_for_recruiters_use_names_that_are_kept() -> None:
    links = re.findall(r"`/study/mnist\?([^`]+)`", GUIDE)
    names = {part.split("=")[0] for link in links for part in link.split("&")}
    assert names <= set(RECRUITER_KEYS)
    assert set(PERSONAL) <= names
    assert all(f"`{{{name}}}`" in GUIDE for name in FILLERS)


def test_the_newest_release_of_the_changelog_is_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text()
    released = [name for name in re.findall(r"^## (\S+)", changelog, re.M) if name != "Unreleased"]
    assert released[0] == version
