"""The page about a study's networks: what the pack says, and evaluations of these very networks and no others."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given
from hypothesis import settings as effort
from hypothesis import strategies as st
from sqlalchemy import func, select

from app import evaluations
from app import settings as settings_module
from app.db import Database
from app.main import create_app
from app.models import Unmasking
from app.models_page import EVALUATED, training
from app.security import CONTENT_SECURITY_POLICY
from app.serving import prepare
from app.settings import Settings
from ml import pack as pack_format
from ml.datasets import DATASETS
from ml.pack import Pack
from tests.app.conftest import Player, installation, sign_in
from tests.app.databases import Databases
from tests.app.evaluation import png, report_about, write_evaluation
from tests.app.oracle import by_labels, play
from tests.app.reading import Page, assert_no_nonsense
from tests.app.small import SMALL_STUDY, db, prepared, settings, small, study
from tests.packs import checkpoint_sha256

__all__ = ["db", "prepared", "settings", "small", "study"]  # fixtures

# It is made from the packs' manifests and from files, and asks no database anything of its own.
pytestmark = pytest.mark.quickly("sqlite")

PAGE = "/results/test/models"


def shown(researcher: TestClient) -> Page:
    reply = researcher.get(PAGE)
    assert reply.status_code == 200, reply.text
    page = Page(reply.text)
    assert_no_nonsense(page)
    return page


# What the pack says


def described(pack: Pack, folder: Path) -> Pack:
    """The same pack with all that `ml.generate` writes into a manifest."""
    training = {
        "model": "x",
        "recipe": 1,
        "image_shape": [1, 28, 28],
        "schedule": {"epochs": 4, "batch": 256, "learning_rate": 0.0002, "adam_epsilon": 1e-8},
        "settings": {"penalty": 56234.0},
        "teacher": None,
    }
    models = [
        record
        | {
            "clean_accuracy": 0.9735,
            "success_rate_before_filter": {"count": 413, "n": 450, "rate": 0.917778},
            "training": training,
        }
        for record in pack.manifest["models"]
    ]
    more = {
        "models": models,
        "dataset": {
            "name": "mnist",
            "source": "Somebody & Co",
            "licence": "CC",
            "note": "A part.",
            "files": {},
        },
        "attack": {"name": "jsma", "parameters": {"theta": 1.0, "gamma": 0.25}},
        "versions": {"torch": "2.13.0+cpu"},
    }
    pngs = [path.read_bytes() for path in (pack.directory / "images").iterdir()]
    return pack_format.write(folder / pack.name, pack.manifest | more, pngs)


def served(pack: Pack, folder: Path, databases: Databases) -> TestClient:
    """The app with this pack and the small study, prepared anew."""
    own = installation(folder, pack, databases.new(folder), SMALL_STUDY)
    prepare(own)
    return TestClient(create_app(own))


def test_a_row_says_of_each_network_what_the_pack_says(
    small: Pack, tmp_path: Path, databases: Databases
) -> None:
    pack = described(small, tmp_path / "stimuli")
    with served(pack, tmp_path, databases) as client:
        page = shown(sign_in(client))
    table = page.tables["Networks, test-pack"]
    assert table[1][:5] == [
        "undefended",
        "97.4",
        "91.8 (413 of 450)",
        "24",  # 4 labels, 3 sources, 2 targets
        "4 epochs, 256 images a batch, adam epsilon 1e-08, learning rate 0.0002, penalty 56234",
    ]
    assert [row[0] for row in table[1:]] == ["undefended", "distilled", "gradient regularized"]
    assert [row[5] for row in table[1:]] == [checkpoint_sha256("test-pack", m)[:12] for m in pack.models]
    for said in (
        "mnist, Somebody & Co",
        "A part.",
        "Jacobian-based saliency map attack (JSMA), gamma 0.25, theta 1",
        "72 altered ones of 28 × 28 pixels",
        pack.pack_sha256,
        "seed 0, torch 2.13.0+cpu",
    ):
        assert said in page.text
    assert "python -m ml.evaluate --dataset mnist makes one" in page.text


def test_the_training_of_each_defense_reads_well() -> None:
    long = {"batches": 15000, "batch": 256, "learning_rate": 2e-4, "adam_epsilon": 1e-4}
    distilled = {
        "schedule": long | {"epochs": None},
        "settings": {"temperature": 50.0},
        "teacher": "distillation_teacher",
        "contrast_normalized": True,
    }
    assert training(distilled) == [
        "15000 batches",
        "256 images a batch",
        "learning rate 0.0002",
        "adam epsilon 0.0001",
        "temperature 50",
        "towards the probabilities of a distillation teacher",
        "contrast normalized yes",
    ]
    assert training({"schedule": {"epochs": 1, "batch": 1}}) == ["1 epoch", "1 image a batch"]
    assert training({"schedule": {"batches": 1}}) == ["1 batch"]
    assert training({}) == []


def test_the_grid_of_each_network_is_there_at_its_own_size(researcher: TestClient, small: Pack) -> None:
    text = researcher.get(PAGE).text
    found = re.findall(
        r'<img src="/stimuli/(\w+)\.png" alt="Images made for ([a-z ]+):[^"]*" width="(\d+)"', text
    )
    assert found == [(small.grids[m], m.replace("_", " "), "117") for m in small.models]
    assert researcher.get(f"/stimuli/{found[0][0]}.png").content == small.image(found[0][0])


@pytest.mark.parametrize("odd", [None, {"name": [], "count": "1", "n": 0}, -1e308])
def test_a_pack_that_says_odd_things_breaks_nothing(
    small: Pack, tmp_path: Path, databases: Databases, odd: object
) -> None:
    """Of a manifest only what the study rests on is checked when it is imported."""
    keys = ("clean_accuracy", "success_rate_before_filter", "training", "checkpoint_sha256")
    models = [{"name": m} | dict.fromkeys(keys, odd) for m in small.models]
    about = {"name": "<mnist>"} | dict.fromkeys(("source", "licence", "note"), odd)
    manifest = small.manifest | {"models": models, "dataset": about, "versions": {"torch": odd}}
    manifest["attack"] = {"name": odd, "parameters": odd}
    pngs = [path.read_bytes() for path in (small.directory / "images").iterdir()]
    pack = pack_format.write(tmp_path / "stimuli" / "test-pack", manifest, pngs)
    with served(pack, tmp_path, databases) as client:
        page = Page(sign_in(client).get(PAGE).text)
        assert client.get("/results/test").status_code == 200
    assert page.tables["Networks, test-pack"][1][:3] == ["undefended", "–", "–"]
    assert "makes one" not in page.text


def test_a_command_is_named_only_where_it_makes_an_evaluation_of_such_networks(
    small: Pack, tmp_path: Path, databases: Databases
) -> None:
    assert set(DATASETS) == EVALUATED
    pngs = [path.read_bytes() for path in (small.directory / "images").iterdir()]
    own = {"own": "my_models:make", "weights": None}
    for i, (name, trained, named) in enumerate(
        [("photos", {}, False), ("svhn", {}, True), ("svhn", own, False)]
    ):
        manifest = small.manifest | {
            "dataset": small.manifest["dataset"] | {"name": name},
            "models": [record | {"training": trained} for record in small.manifest["models"]],
        }
        folder = tmp_path / str(i)
        folder.mkdir()
        with served(
            pack_format.write(folder / "stimuli" / "test-pack", manifest, pngs), folder, databases
        ) as client:
            page = shown(sign_in(client))
        assert (
            "is about these very networks: python -m ml.evaluate --dataset svhn makes one." in page.text
        ) is named
        assert ("is about these very networks." in page.text) is not named


# Who may see it, and that it says nothing of people


def test_it_is_for_the_researcher_alone(client: TestClient, settings: Settings, small: Pack) -> None:
    write_evaluation(settings.results, small)
    for url in (PAGE, f"{PAGE}/test/curves.png", f"{PAGE}/test/report.html"):
        assert client.get(url).status_code == 401
    assert sign_in(client).get(f"{PAGE}/test/curves.png").status_code == 200
    for url in ("/results/none/models", "/results/none/models/test/curves.png"):
        assert client.get(url).status_code == 404


def test_answers_change_nothing_on_it_and_looking_unmasks_nothing(
    researcher: TestClient, small: Pack, db: Database
) -> None:
    before = researcher.get(PAGE).text
    counts = dict.fromkeys(small.models, (1, 1, 1, 2))
    for _ in range(2):
        play(researcher, "test", [small], by_labels(counts))
    link = f'href="{PAGE}?version='
    dashboard = researcher.get("/results/test").text
    assert "Masked until the target" in dashboard
    assert link in dashboard, "reachable while masked"
    assert researcher.get(PAGE).text == before
    with db.read() as session:
        assert session.scalar(select(func.count()).select_from(Unmasking)) == 0
    play(researcher, "test", [small], by_labels(counts))
    assert link in researcher.get("/results/test").text
    assert link not in researcher.get("/results/test/report.html").text, "which stands alone"
    assert researcher.get(PAGE).text == before


def test_an_earlier_version_shows_its_own_packs(
    researcher: TestClient, settings: Settings, small: Pack, start: Callable[..., Player]
) -> None:
    version = researcher.get("/results/test.json").json()["version"]
    (settings.studies / "test.toml").write_text(SMALL_STUDY.replace("A study", "Another study"))
    prepare(settings)
    assert "Another study" in shown(researcher).text
    old = Page(researcher.get(f"{PAGE}?version={version}").text)
    assert "Another study" not in old.text
    assert "A study for tests" in old.text


# Evaluations


def test_an_evaluation_of_these_very_networks_is_shown_as_soon_as_it_is_there(
    researcher: TestClient, settings: Settings, small: Pack
) -> None:
    assert "No evaluation in evaluations is about these very networks" in shown(researcher).text
    folder = write_evaluation(settings.results, small)
    page = shown(researcher)
    assert "No evaluation" not in page.text
    assert "512 test images of test; trained for 4 epochs of 256 images; made by python -m " in page.text
    assert "ml.evaluate --dataset test in 1.5 minutes." in page.text
    assert "A part of it, not the full set." in page.text
    assert page.tables["The paper’s claims, test, test-pack"][1:] == [
        [
            "Regularized networks resist best At high epsilon they keep most of their accuracy "
            "<on others' examples>.",
            "holds",
            "2 numbers 0.80 against 0.110.3Accuracy over epsilon",  # four lines
        ],
        ["Cost Nearly three times.", "undecided", "–"],
    ]
    text = researcher.get(PAGE).text
    (to,) = re.findall(r'<a href="#([^"]*)">Accuracy over epsilon</a>', text)
    assert f'id="{to}"' in text
    images = re.findall(r'<img src="(/results/[^"]+)" alt="([^"]*)" width="(\d+)" height="(\d+)"', text)
    assert [image[1:] for image in images] == [
        ("Accuracy over epsilon", "1400", "500"),
        ("A small grid", "291", "291"),
    ]
    for (url, *_), name in zip(images, ("curves.png", "grid.png"), strict=True):
        reply = researcher.get(url.replace("&amp;", "&"))
        assert (reply.status_code, reply.headers["content-type"]) == (200, "image/png")
        assert reply.content == (folder / name).read_bytes()


def changed(small: Pack, **checkpoints: str | None) -> dict[str, Any]:
    """The models of a report about the pack's networks, some of them other ones, None for none."""
    models = report_about({m["name"]: m["checkpoint_sha256"] for m in small.manifest["models"]})["models"]
    for name, sha256 in checkpoints.items():
        if sha256 is None:
            del models[name]
        else:
            models[name]["checkpoint_sha256"] = sha256
    return {"models": models}


def test_an_evaluation_of_other_networks_is_not(
    researcher: TestClient, settings: Settings, small: Pack
) -> None:
    one, two = (checkpoint_sha256("test-pack", model) for model in ("undefended", "distilled"))
    for name, models in {
        "retrained": changed(small, distilled="0" * 64),
        "without-one": changed(small, gradient_regularized=None),
        "names-swapped": changed(small, undefended=two, distilled=one),
        "nobody": {"models": {}},
    }.items():
        write_evaluation(settings.results, small, name, **models)
        assert researcher.get(f"{PAGE}/{name}/curves.png").status_code == 404
    page = shown(researcher)
    assert "No evaluation in evaluations is about these very networks." in page.text
    assert "Accuracy over epsilon" not in page.text
    write_evaluation(settings.results, small, "these")
    assert "What the laboratory measured: these" in shown(researcher).text


BROKEN: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "not valid JSON"),
    "half": ('{"dataset": {"name": "t', "not valid JSON"),
    "list": ("[]", "the file: Input should be"),
    "nothing": ("{}", "dataset: Field required"),
    "models": ('{"dataset": {"name": "x"}, "models": [1]}', "models: Input should be"),
    "hash": (
        '{"dataset": {"name": "x"}, "models": {"a": {"checkpoint_sha256": 7}}}',
        "models.a.checkpoint_sha256",
    ),
    "numbers": (
        '{"dataset": {"name": "x"}, "models": {}, "claims": [{"title": "t", "verdict": "v", "numbers": 3}]}',
        "claims.0.numbers: Value error, not a list",
    ),
    "nan": ('{"dataset": {"name": "x"}, "models": {}, "seconds": NaN}', "seconds: Input should be"),
    "bytes": (b'{"dataset": {"name": "\xff"}}', "not Unicode"),
    "half-a-character": ('{"dataset": {"name": "\\ud800"}, "models": {}}', "not Unicode"),
    "deep": ("[" * 100_000, "nested too deeply"),
    "long": (f'{{"seconds": {"9" * 5000}}}', "number too long"),
}


def test_each_broken_report_is_one_line_and_the_others_are_shown(
    researcher: TestClient, settings: Settings, small: Pack
) -> None:
    write_evaluation(settings.results, small, "whole")
    for fault, (content, _) in BROKEN.items():
        (settings.results / fault).mkdir()
        written = content if isinstance(content, bytes) else content.encode()
        (settings.results / fault / "report.json").write_bytes(written)
    text = researcher.get(PAGE).text
    lines = re.findall(
        r'<p class="error">An evaluation cannot be used: evaluations/(\S+)/report.json: (.*)</p>', text
    )
    assert [fault for fault, _ in lines] == sorted(BROKEN)
    for fault, line in lines:
        assert BROKEN[fault][1] in line, fault
    assert str(settings.results) not in text, "where the server keeps its files is nobody's business"
    assert "What the laboratory measured: whole" in text
    assert researcher.get(f"{PAGE}/whole/curves.png").status_code == 200
    assert researcher.get("/results/test").status_code == 200


def test_a_report_that_is_a_folder_or_too_large_is_one_line(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, small: Pack
) -> None:
    (settings.results / "folder" / "report.json").mkdir(parents=True)
    assert evaluations.read_all(settings.results)[1] == [
        "folder/report.json: cannot be read (Is a directory)"
    ]
    write_evaluation(settings.results, small, "large")
    monkeypatch.setattr(evaluations, "MOST_BYTES", 100)
    assert evaluations.read_all(settings.results)[1][1] == "large/report.json: larger than 100 bytes"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@effort(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.sampled_from(sorted(report_about({}))), part=JSON, numbers=st.lists(JSON, max_size=3))
def test_whatever_a_report_says_it_is_read_or_refused_in_one_line(
    tmp_path: Path, key: str, part: object, numbers: list[object]
) -> None:
    folder = tmp_path / "any"
    folder.mkdir(exist_ok=True)
    claims = [{"title": "t", "verdict": "v", "numbers": numbers}]
    (folder / "report.json").write_text(json.dumps(report_about({}) | {"claims": claims} | {key: part}))
    found, broken = evaluations.read_all(tmp_path)
    assert len(found) + len(broken) == 1
    assert all("\n" not in line for line in broken)
    for evaluation in found:
        assert json.dumps(evaluation.report.model_dump(), ensure_ascii=False).encode()


def test_a_number_is_a_sentence() -> None:
    estimate = {"value": 0.125, "low": 0.1, "high": 0.2, "n": 256}
    number = {
        "what": "accuracy",
        "estimate": estimate,
        "unit": "share",
        "wanted": "more than 5 %",
        "verdict": "holds",
    }
    said = evaluations.said
    assert said(number) == "accuracy: 12.5 % (10.0 to 20.0 %, n = 256); wanted: more than 5 % (holds)"
    assert said({"what": "change", "value": -0.03, "unit": "points"}) == "change: −3.0 points"
    assert said({"what": "cost", "value": 2.87, "low": 2.5, "high": 3, "unit": "factor"}) == (
        "cost: 2.87 times (2.5 to 3 times)"
    )
    assert said({"what": "norm", "value": 1e30, "unit": "share"}) == "norm: 1e+30"
    assert said({"fgsm_a": [0.25, None, True], "n": 3}) == "fgsm a: 0.25, –, yes, n: 3"
    assert said([[[[[[["too deep"]]]]]]]) == "…"


# Files


def listing(*files: str) -> dict[str, Any]:
    return {"figures": [{"file": file, "title": "T"} for file in files]}


TRICKS = (
    "../secret.png",
    "..\\secret.png",
    "/etc/hosts",
    "/etc/hosts\x00.png",
    "./curves.png",
    "other/curves.png",
    ".hidden.png",
    "report.json",
    "report.html",
    "curves.PNG",
    "curves.png\n",
    "",
)


def test_a_listed_name_that_is_no_plain_png_is_said_and_never_served(
    researcher: TestClient, settings: Settings, small: Pack
) -> None:
    folder = write_evaluation(settings.results, small, **listing(*TRICKS, "grid.png"))
    (folder / "other").mkdir()
    for path in ("../secret.png", ".hidden.png", "other/curves.png", "..\\secret.png"):
        (folder / path).write_bytes(png(3, 3))
    text = researcher.get(PAGE).text
    assert text.count("A figure of the report is not shown: ") == len(TRICKS)
    assert text.count("not the name of a PNG in the report") == len(TRICKS)
    assert re.findall(r'src="/results/test/models/test/([^"?]*)', text) == ["grid.png"]
    for trick in set(TRICKS) - {"report.html"}:  # that one is served, as a file to keep
        for url in (f"{PAGE}/test/{quote(trick)}", f"{PAGE}/test/{quote(trick, safe='')}"):
            assert researcher.get(url).status_code == 404, url


def test_what_is_not_a_png_in_the_folder_is_said_and_never_served(
    researcher: TestClient, settings: Settings, small: Pack
) -> None:
    files = ("text.png", "missing.png", "away.png", "circle.png", "cut.png", "folder.png")
    folder = write_evaluation(settings.results, small, **listing(*files, "grid.png"))
    (folder / "text.png").write_text("<script>")
    (settings.results / "elsewhere.png").write_bytes(png(3, 3))
    (folder / "away.png").symlink_to(settings.results / "elsewhere.png")
    (folder / "circle.png").symlink_to(folder / "circle.png")
    (folder / "cut.png").write_bytes(png(3, 3)[:20])
    (folder / "folder.png").mkdir()
    page = shown(researcher)
    for file in files:
        why = "not a PNG" if file in ("text.png", "cut.png") else "not in the report's folder"
        assert f"A figure of the report is not shown: {file}: {why}." in page.text
        assert researcher.get(f"{PAGE}/test/{file}").status_code == 404
    assert researcher.get(f"{PAGE}/test/grid.png").status_code == 200


def test_what_the_report_does_not_list_is_not_served(
    researcher: TestClient, settings: Settings, small: Pack
) -> None:
    folder = write_evaluation(settings.results, small)
    (folder / "draft.png").write_bytes(png(3, 3))
    (settings.results / "report.html").write_text("not in a folder of its own")
    for tail in (
        "test/draft.png",
        "test/report.json",
        "test/",
        "test",
        "%2e%2e/test/curves.png",
        "%2e%2e/report.html",
        "%2e/report.html",
        "none/curves.png",
        f"{os.sep}test/curves.png",
    ):
        assert researcher.get(f"{PAGE}/{tail}").status_code in (401, 404), tail
    assert researcher.get(f"{PAGE}/test/curves.png").status_code == 200


def test_the_whole_report_is_a_file_to_keep_and_runs_nothing_here(
    researcher: TestClient, settings: Settings, small: Pack
) -> None:
    folder = write_evaluation(settings.results, small)
    link = re.findall(r'href="(/results/test/models/test/report\.html[^"]*)"', researcher.get(PAGE).text)
    reply = researcher.get(link[0].replace("&amp;", "&"))
    assert reply.status_code == 200
    assert reply.headers["content-disposition"] == 'attachment; filename="test-report.html"'
    assert reply.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert reply.content == (folder / "report.html").read_bytes()
    (folder / "report.html").unlink()
    assert "report.html" not in researcher.get(PAGE).text
    assert researcher.get(link[0].replace("&amp;", "&")).status_code == 404


def test_the_environment_says_where_evaluations_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SECRET_KEY", "a secret that is long enough")
    monkeypatch.delenv("RESULTS_DIR", raising=False)
    assert settings_module.load().results == settings_module.ROOT / "docs" / "results"
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path))
    assert settings_module.load().results == tmp_path
    assert evaluations.read_all(tmp_path / "nowhere") == ([], [])
