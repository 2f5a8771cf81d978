"""The command as a whole on a small set: its JSON, its figures, its page, and that none is ever half there."""

import base64
import copy
import dataclasses
import io
import json
import re
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageColor

from ml import checkpoints, evaluate, evaluation_json, evaluation_report, figures, train
from ml.datasets import Dataset, DatasetError
from ml.defenses import DEFENSES
from ml.evidence import FIVE
from tests.ml.evidence import ALL, Story

PENALTIES = ["--sweep", "--sweep-points", "2", "--penalty", "double_backprop=7"]
ARGUMENTS = ["--dataset", "digits", "--epochs", "2", "--seed", "3", "--device", "cpu", "--images", "40"]


@dataclass(frozen=True)
class Run:
    """A finished run of the command."""

    dataset: Dataset
    checkpoints: Path
    out: Path
    report: dict[str, Any]

    @property
    def page(self) -> str:
        return (self.out / "report.html").read_text(encoding="utf-8")


def run(dataset: Dataset, folder: Path, out: Path, *more: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "load", lambda name, data_dir: dataset)
        patch.setattr(figures, "_DPI", 50)  # enough to see that they are drawn
        return evaluate.main([*ARGUMENTS, "--checkpoints", str(folder), "--out", str(out), *more])


@pytest.fixture(scope="module")
def letters(small_digits: Dataset) -> Dataset:
    """Five labels, named A to E, and few images."""
    train_set, test_set = small_digits.train_labels < 5, small_digits.test_labels < 5
    return dataclasses.replace(
        small_digits,
        labels=tuple("ABCDE"),
        train_images=small_digits.train_images[train_set][:128],
        train_labels=small_digits.train_labels[train_set][:128],
        test_images=small_digits.test_images[test_set][:90],
        test_labels=small_digits.test_labels[test_set][:90],
        note="A part of the letters: 90 <of> 900.",
    )


@pytest.fixture(scope="module")
def done(letters: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("evaluation")
    out = folder / "results" / "letters"
    assert run(letters, folder / "checkpoints", out, "--cost-repetitions", "6", *PENALTIES) == 0
    return Run(letters, folder / "checkpoints", out, json.loads((out / "report.json").read_text()))


def test_the_json_says_what_was_measured_on_which_networks(done: Run) -> None:
    report = done.report
    assert report["format"] == "evaluation/1"
    assert report["dataset"]["note"] == done.dataset.note
    assert (report["n"], report["dataset"]["test_images"], report["seed"]) == (40, 90, 3)
    assert report["schedule"]["kind"] == "study"
    assert report["schedule"]["epochs"] == 2
    assert report["command"].startswith("python -m ml.evaluate --dataset digits --epochs 2")
    assert {"python", "torch", "numpy", "scipy", "reasonable-mistakes"} <= set(report["versions"])
    assert list(report["models"]) == sorted(FIVE)
    for name, record in report["models"].items():
        model = checkpoints.load(done.checkpoints / "digits" / record["checkpoint"])
        assert (record["checkpoint_sha256"], record["config"]) == (model.checkpoint_sha256, model.config)
        right = train.predict(model.network, done.dataset.test_images).argmax(1).numpy()
        right = right == done.dataset.test_labels
        assert report["clean_accuracy"][name] == pytest.approx(right.mean(), abs=1e-6)
        assert record["low"] < record["clean_accuracy"] < record["high"]
        for attack in ("fgsm", "tgsm"):
            for maker in FIVE:  # at epsilon 0 it does not matter whom an example is made for
                assert report["transfer"][attack][maker][name]["0.0"] == right[:40].mean()
    for attack, made in report["transfer"].items():
        for maker, judges in made.items():
            assert set(judges) == set(FIVE)
            for judge, points in judges.items():
                assert list(points) == ["0.0", "0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7"]
                for epsilon, accuracy in points.items():
                    low, high = report["transfer_intervals"][attack][maker][judge][epsilon]
                    assert 0 <= low <= accuracy <= high <= 1


def test_penalties_come_from_the_sweep_or_from_the_command(done: Run) -> None:
    """What is given is not swept."""
    report = done.report
    assert list(report["sweeps"]) == ["gradient_regularized"]
    swept = report["sweeps"]["gradient_regularized"]
    assert [row["penalty"] for row in swept["rows"]] == [1.0, 1000.0]
    assert swept["validation_images"] == 13
    assert report["models"]["gradient_regularized"]["config"]["settings"] == {"penalty": swept["chosen"]}
    assert report["models"]["double_backprop"]["config"]["settings"] == {"penalty": 7.0}
    assert report["models"]["undefended"]["config"]["settings"] == {}
    table = re.search(r'aria-label="Sweep of gradient-regularized.*?</table>', done.page, re.DOTALL)
    assert table is not None
    assert f"{swept['chosen']:g} (chosen)" in table[0]
    for row in (swept["undefended"], *swept["rows"]):
        assert f"{100 * row['transferred']['0.2']:.1f}" in table[0]


def test_the_json_has_the_other_measurements(done: Run) -> None:
    report = done.report
    for name in FIVE:
        gradients = report["gradients"][name]
        assert set(gradients) == {"true", "next", "all"}
        norm = gradients["next"]["norm"]
        assert list(norm.values()) == sorted(norm.values())
        assert norm["0.0"] >= 1e-20
        assert gradients["true"]["vanished_in_float32"]["n"] == 40
        assert report["overlap"][name]["n"] == 40
        wrong = report["overlap"][name]["both_wrong"][name][name]
        assert wrong == 40 - round(40 * report["transfer"]["fgsm"][name][name]["0.4"])
        assert report["iterated_tgsm"][name]["reached"]["n"] == 5 * 4
        assert len(report["iterated_tgsm"][name]["reached_by_step"]) == 11
    assert set(report["jsma"]) == {"distilled", "gradient_regularized"}
    assert report["jsma"]["distilled"]["reached"]["n"] == 2 * 5 * 4
    assert report["cost"]["ratio"]["undefended"]["value"] == 1
    assert report["published"] == []


def test_every_figure_is_a_png_that_json_and_page_name(done: Run) -> None:
    names = [record["file"] for record in done.report["figures"]]
    assert len(names) == len(set(names)) == 11
    assert {path.name for path in done.out.iterdir()} == {*names, "report.json", "report.html"}
    for record in done.report["figures"]:
        data = (done.out / record["file"]).read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            assert image.width == 480
        assert base64.b64encode(data).decode() in done.page
        assert all(record[key] for key in ("title", "caption", "published"))
    for claim in done.report["claims"]:
        assert set(claim["figures"]) <= set(names)


class Page(HTMLParser):
    """Checks that elements are closed in order; collects headings, sources and text."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(data)


def parsed(html: str) -> Page:
    page = Page()
    page.feed(html)
    page.close()
    assert page.open == []
    return page


def test_the_page_needs_nothing_but_itself(done: Run) -> None:
    page = parsed(done.page)
    for tag, name, value in page.attributes:
        if name in ("src", "href", "data", "action"):
            assert value.startswith(("data:image/png;base64,", "#")), (tag, value)
    assert not {"script", "link", "iframe"} & {tag for tag, _, _ in page.attributes}
    assert "url(" not in done.page
    assert "@import" not in done.page
    ids = [value for _, name, value in page.attributes if name == "id"]
    links = [value[1:] for tag, name, value in page.attributes if (tag, name) == ("a", "href")]
    assert len(ids) == len(set(ids))
    assert set(links) <= set(ids)


def test_the_page_tells_each_claim_its_verdict_and_what_made_it(done: Run) -> None:
    text = re.sub(r"\s+", " ", " ".join(parsed(done.page).text))
    assert "Not the whole data set." in text
    assert "90 <of> 900" in text  # escaped in the page
    for claim in done.report["claims"]:
        assert f"{claim['id']} {claim['title']}" in text
        assert claim["criterion"].split("(")[0].strip()[:60] in text
    for record in done.report["models"].values():
        assert record["checkpoint_sha256"] in text
    assert done.report["command"] in text
    assert done.dataset.files["digits.csv"] in text
    for record in done.report["figures"]:
        assert record["published"] in text


def test_the_same_checkpoints_give_the_same_report_but_for_times(
    done: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "png", lambda *how: b"not drawn")
    again = tmp_path / "letters"
    assert run(done.dataset, done.checkpoints, again, "--cost-repetitions", "0", *PENALTIES) == 0
    second = json.loads((again / "report.json").read_text())
    first = dict(done.report)
    for report in (first, second):
        for key in ("seconds", "cost", "command", "figures"):
            del report[key]
        report["claims"] = [claim for claim in report["claims"] if not claim["id"].startswith("7")]
    assert second == first


def test_the_page_says_why_a_claim_is_undecided_and_what_is_not_as_in_the_paper(done: Run) -> None:
    report = copy.deepcopy(dict(done.report))
    by_id = {claim["id"]: claim for claim in report["claims"]}
    for claim in by_id.values():
        claim["verdict"] = "holds"
    for id in ("4", "5", "6", "8a", "8b", "8c", "3b"):
        by_id[id]["verdict"] = "undecided"
    for id in ("8a", "8b", "8c"):
        by_id[id]["numbers"] = []
    by_id["3b"]["numbers"][0]["verdict"] = "undecided"
    for name, model in report["models"].items():
        model["clean_accuracy"] = 0.9
        model["config"]["settings"] = DEFENSES[name].settings_for("digits")
    figures = {path.name: path.read_bytes() for path in done.out.glob("*.png")}

    def text() -> str:
        return " ".join(evaluation_report.page(report, figures).split())

    said = text()
    assert "7 undecided (an interval leaves it open: 1, not measured: 3, people decide: 3)." in said
    assert "hardly read" not in said
    assert "Not the paper’s penalties" not in said
    report["models"]["distilled"]["clean_accuracy"] = 0.69
    report["dataset"]["name"] = "svhn"
    for name, model in report["models"].items():
        model["config"]["settings"] = DEFENSES[name].settings_for("svhn")
    assert "Not the paper’s penalties" not in text()
    report["models"]["double_backprop"]["config"]["settings"]["penalty"] = 7.0
    said = text()
    assert "hardly read unmodified images:</strong> distilled." in said
    assert "double backprop (true label): 7 in place of the paper’s 10000." in said


@pytest.mark.parametrize("how", [{"colors": 8}, {"grays": 8}])
def test_few_colors_leave_those_with_a_meaning(how: dict[str, int]) -> None:
    def noisy() -> Figure:
        figure = Figure(figsize=(3, 3))
        ax = figure.subplots()
        ax.imshow(np.random.default_rng(0).random((60, 60)), cmap="gray")
        ax.plot([5, 6], [5, 6], color=figures.FAILED, lw=5)
        return figure

    with Image.open(io.BytesIO(figures.png(noisy, **how))) as image:
        seen = {color for _, color in image.convert("RGB").getcolors(1 << 24) or []}
        corner = image.convert("RGB").getpixel((0, 0))
    assert corner == (255, 255, 255)
    assert ImageColor.getrgb(figures.FAILED) in seen
    assert len(seen) <= 8 + 12


def test_figures_of_the_published_points_and_of_eight_models_can_be_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(figures, "_DPI", 50)
    measured = Story(models=ALL, n=50).build()
    assert measured.cost is not None
    cost = measured.cost
    for function in (
        lambda: figures.curves(measured.transfer, "fgsm", "mnist"),
        lambda: figures.log_probabilities(measured.gradients),
        lambda: figures.cost(cost, measured.models),
    ):
        drawn = figures.png(function)
        assert drawn.startswith(b"\x89PNG")
    assert drawn == figures.png(function)  # the same bytes each time


def story_report() -> dict[str, Any]:
    """What the JSON has of made-up measurements."""
    return evaluation_json.measurements(Story().build(), [])


def test_published_numbers_stand_beside_ours_on_the_same_images() -> None:
    rows = story_report()["published"]
    assert [(row["evaluated"], row["epsilon"], row["published"]) for row in rows] == [
        ("undefended", 0.1, 0.73),
        ("undefended", 0.2, 0.28),
        ("undefended", 0.3, 0.11),
        ("double_backprop", 0.1, 0.98),
        ("double_backprop", 0.2, 0.92),
        ("double_backprop", 0.3, 0.8),
    ]
    for row in rows:
        assert row["n"] == 256
        assert row["difference"] == pytest.approx(row["ours"] - row["published"])
        assert abs(row["ours_on_all"] - row["published"]) < 0.01  # as the made-up measurements are


def test_floats_are_rounded_to_six_digits_and_nothing_is_not_a_number() -> None:
    raw = {
        "a": 1 / 3,
        "b": [1.23456789e-20, float("nan"), np.inf],
        "c": (1, "x", None, True),
        "d": {"e": -1e9 / 7},
    }
    assert evaluation_json.rounded(raw) == {
        "a": 0.333333,
        "b": [1.23457e-20, None, None],
        "c": [1, "x", None, True],
        "d": {"e": -142857000.0},
    }


def test_a_report_replaces_the_one_before_and_nothing_else(done: Run, tmp_path: Path) -> None:
    folder = tmp_path / "results" / "digits"
    old = {
        **done.report,
        "figures": [*done.report["figures"], {**done.report["figures"][0], "file": "gone.png"}],
    }
    pictures = {record["file"]: (done.out / record["file"]).read_bytes() for record in done.report["figures"]}
    evaluation_report.write(folder, old, {**pictures, "gone.png": b"old"})
    (folder / "README.md").write_text("kept")
    evaluation_report.write(folder, done.report, pictures)
    assert not (folder / "gone.png").exists()
    assert (folder / "README.md").read_text() == "kept"
    assert json.loads((folder / "report.json").read_text()) == done.report
    assert [path.name for path in folder.parent.iterdir()] == ["digits"]


@pytest.mark.parametrize("fault", ["page", "rename"])
def test_where_writing_fails_the_report_before_is_whole(
    done: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    folder = tmp_path / "results" / "digits"
    pictures = {record["file"]: (done.out / record["file"]).read_bytes() for record in done.report["figures"]}
    evaluation_report.write(folder, done.report, pictures)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    if fault == "page":
        monkeypatch.setattr(evaluation_report, "page", lambda report, figures: 1 / 0)
    else:
        rename = Path.rename

        def failing(self: Path, target: Path) -> Path:
            if self.name == "fresh":
                raise OSError("no space left on device")
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises((ZeroDivisionError, OSError)):
        evaluation_report.write(folder, {**done.report, "seed": 99}, pictures)
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["digits"]


def fails(capsys: pytest.CaptureFixture[str], status: int) -> str:
    """The one line that a refused command says."""
    assert status == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def test_a_folder_that_is_no_report_is_left_alone_before_anything_is_loaded(
    letters: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "thesis.tex").write_text("three years")
    monkeypatch.setattr(evaluate, "load", lambda name, data_dir: pytest.fail("loaded"))
    line = fails(capsys, evaluate.main([*ARGUMENTS, "--out", str(tmp_path)]))
    assert str(tmp_path) in line
    assert "--out" in line
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_damaged_checkpoint_is_found_out_and_the_report_kept(
    done: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in done.out.iterdir()}
    obtain = train.obtain

    def wrong(name: str, *rest: Any) -> checkpoints.Trained:
        model = obtain(name, *rest)
        return dataclasses.replace(model, clean_accuracy=0.01) if name == "distilled" else model

    monkeypatch.setattr(train, "obtain", wrong)
    monkeypatch.setattr(evaluate, "measure", lambda *how: pytest.fail("measured"))
    status = run(done.dataset, done.checkpoints, done.out, "--cost-repetitions", "0")
    assert "distilled" in fails(capsys, status)
    assert {path.name: path.read_bytes() for path in done.out.iterdir()} == before


def test_other_errors_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str, data_dir: Path | None) -> Dataset:
        raise DatasetError("no such folder")

    out = ["--out", str(tmp_path / "out")]
    monkeypatch.setattr(evaluate, "load", missing)
    assert fails(capsys, evaluate.main([*ARGUMENTS, *out])) == "error: no such folder"

    def interrupted(name: str, data_dir: Path | None) -> Dataset:
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "load", interrupted)
    assert evaluate.main([*ARGUMENTS, *out]) == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong",
    [
        ["--images", "1"],
        ["--images", "x"],
        ["--cost-repetitions", "3"],
        ["--epochs", "0"],
        ["--schedule", "short"],
    ],
)
def test_arguments_out_of_range_are_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        evaluate.main([*ARGUMENTS, *wrong])
    assert refused.value.code == 2
    assert wrong[0] in capsys.readouterr().err.splitlines()[-1]


def test_epochs_of_a_schedule_that_counts_batches_are_refused(
    letters: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = fails(capsys, run(letters, tmp_path, tmp_path / "out", "--schedule", "long"))
    assert "--epochs" in line


def test_transfer_needs_no_gradients_kept(done: Run) -> None:
    """Networks come back as they were: nothing that evaluates them may train them."""
    record = done.report["models"]["undefended"]
    model = checkpoints.load(done.checkpoints / "digits" / record["checkpoint"])
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    options = evaluate.Options(images=10, cost_repetitions=0)
    networks = dict.fromkeys(("undefended", "distilled", "gradient_regularized"), model.network)
    schedule = train.schedule_for("digits")
    clean = {name: np.ones(90, dtype=bool) for name in networks}
    evaluate.measure(done.dataset, networks, clean, options, schedule, torch.device("cpu"))
    for name, tensor in model.network.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert all(parameter.grad is None for parameter in model.network.parameters())
