"""The documentation says what the code does."""

import re
import tomllib
from collections.abc import Iterator
from typing import get_args

from pydantic import BaseModel

from app.definition import Definition, Outcome
from app.outcomes import COMPARED
from app.recruiters import FILLERS, PERSONAL, RECRUITER_KEYS
from app.settings import ROOT
from app.sheet import FIGURE_OUTCOMES, FINDINGS

GUIDE = (ROOT / "docs" / "study-file.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


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
    table = GUIDE.split("| key | default | meaning |")[1].split("\n\n")[0]
    rows = dict(re.findall(r"^\| (`.+?`) \| (.*?) \|", table, re.M))
    documented = {key: default for names, default in rows.items() for key in re.findall(r"`([^`]+)`", names)}
    documented["translations"] = documented.pop("translations.zh")
    found = dict(keys(Definition))
    assert set(documented) == set(found)
    for key, default in found.items():
        if isinstance(default, bool | int | str) and not key.startswith("primary."):
            said = documented[key].strip('"')
            assert said == str(default).lower(), key


def test_every_outcome_that_is_compared_is_documented_and_has_its_sentence_and_figure() -> None:
    outcomes = set(get_args(Outcome))
    assert outcomes == set(COMPARED) == set(FINDINGS) == set(FIGURE_OUTCOMES)
    table = GUIDE.split("| outcome | counts where |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)`", table, re.M)) == outcomes


def test_the_examples_are_study_files() -> None:
    examples = re.findall(r"^```toml\n(.+?)^```", GUIDE, re.M | re.S)
    assert len(examples) == 2
    rest = tomllib.loads((ROOT / "studies" / "mnist.toml").read_text(encoding="utf-8"))
    for example in examples:
        content = rest | tomllib.loads(example)
        definition = Definition.model_validate(content)
        assert [f"{p:.4f}" for p in definition.look_boundaries] == ["0.0042", "0.0194", "0.0430"]
        assert definition.primary.pack == "mnist-jsma"


def test_every_module_of_the_app_is_named_for_contributors() -> None:
    places = CONTRIBUTING.split("| part | modules |")[1].split("\n\n")[0]
    named = set(re.findall(r"`(\w+)`", places))
    modules = {path.stem for path in (ROOT / "app").glob("*.py")} - {"__init__"}
    assert sorted(modules - named) == []
    assert {"app/analysis/"} <= set(re.findall(r"`([^`]+)`", places))


def test_every_module_of_the_laboratory_is_named_for_contributors() -> None:
    places = CONTRIBUTING.split("| part of `ml/` | modules |")[1].split("\n\n")[0]
    modules = {path.stem for path in (ROOT / "ml").glob("*.py")} - {"__init__"}
    assert sorted(modules - set(re.findall(r"`(\w+)`", places))) == []


def test_what_contributors_are_sent_to_is_there() -> None:
    """Every file and every name in code that CONTRIBUTING.md speaks of."""
    files = set(re.findall(r"`((?:[\w.]+/)*[\w.]+\.(?:py|js|html|R|po|md|toml|txt))`", CONTRIBUTING))
    folders = [
        "",
        "app",
        "app/analysis",
        "app/translations",
        "ml",
        "static",
        "templates",
        "tests",
        "tests/app",
        "tests/ml",
    ]
    assert len(files) > 40
    assert [name for name in sorted(files) if not any((ROOT / f / name).is_file() for f in folders)] == []
    code = "\n".join(
        path.read_text(encoding="utf-8")
        for suffix in ("py", "html")
        for part in ("app", "ml", "templates", "tests")
        for path in (ROOT / part).rglob(f"*.{suffix}")
        if path.name != "test_docs.py"
    )
    code += "\n".join(path.stem for path in (ROOT / "ml").glob("*.py"))
    names = set(re.findall(r"`(?:\w+\.)?([A-Z]\w+|_[a-z]+|[a-z]+(?:_[a-z]+)+)`", CONTRIBUTING))
    assert {"FINDINGS", "Exclusions", "drawn_anew", "_compare"} <= names
    assert [name for name in sorted(names) if not re.search(rf"\b{name}\b", code)] == []


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
