"""What cannot be used or written is said in one line before anything is trained."""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ml import checkpoints, evaluate, folders, generate, train
from ml.datasets import Dataset

Main = Callable[[list[str]], int]

GENERATE = ["--dataset", "notmnist", "--attack", "tgsm", "--device", "cpu"]
EVALUATE = ["--dataset", "notmnist", "--images", "4", "--cost-repetitions", "0", "--device", "cpu"]
COMMANDS = [
    pytest.param(generate, GENERATE, id="generate"),
    pytest.param(evaluate, EVALUATE, id="evaluate"),
]


def noise(height: int, width: int, count: int = 6) -> Dataset:
    """Images of noise, of two labels in turn."""
    images = np.random.default_rng(0).integers(0, 256, (2, count, 1, height, width)).astype(np.uint8)
    labels = np.arange(count) % 2
    return Dataset("notmnist", ("A", "B"), images[0], labels, images[1], labels, "", "", {})


def refused(capsys: pytest.CaptureFixture[str], main: Main, arguments: list[str]) -> str:
    """The one line that the command says before it gives up."""
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    return shown.err


@pytest.mark.parametrize(("command", "arguments"), COMMANDS)
@pytest.mark.parametrize(
    ("out", "complaint"),
    [
        ("file.txt/x", "file.txt is not a folder"),
        ("file.txt/x/y", "file.txt is not a folder"),
        ("/proc/xx", "cannot be written (/"),
        (".", "the current folder is there"),
        ("..", "the current folder is there"),
        (os.fsdecode(b"ev\xff"), r"'ev\udcff' cannot be written (its name is not UTF-8)"),
        (os.fsdecode(b"ev\xff/x"), "its name is not UTF-8"),
        ("loop/x", "a link that leads to itself"),
        ("x" * 250, "File name too long"),  # once its temporary neighbor has a longer one
        ("file.txt", "exists and is not"),
    ],
)
def test_where_nothing_can_be_written_is_said_before_anything_is_read(
    command: Any,
    arguments: list[str],
    out: str,
    complaint: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.txt").write_text("mine")
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.setattr(command, "load", lambda *how: pytest.fail("read"))
    assert complaint in refused(capsys, command.main, [*arguments, "--out", out])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.txt", "loop"]


@pytest.mark.parametrize("name", ["my pack", "-pack", "x" * 101, "päck"])
def test_what_a_pack_cannot_be_called_is_said_before_anything_is_read(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "load", lambda *how: pytest.fail("read"))
    line = refused(capsys, generate.main, [*GENERATE, f"--out={tmp_path / name}"])
    assert f"a pack cannot be called {name!r}" in line
    assert list(tmp_path.iterdir()) == []


def test_own_images_are_not_read_either(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--images", str(tmp_path / "nowhere"), "--attack", "tgsm", "--out", str(tmp_path / "my pack")]
    assert "a pack cannot be called" in refused(capsys, generate.main, given)


def test_trying_whether_something_can_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "new", tmp_path / "a" / "b" / "new", Path("not-there") / "new"):
        assert folders.obstacle(path) is None
    assert list(tmp_path.iterdir()) == []
    assert not Path("not-there").exists()


@pytest.mark.parametrize(("command", "arguments"), COMMANDS)
@pytest.mark.parametrize(
    ("folder", "complaint"),
    [
        ("file.txt", "file.txt is not a folder"),
        ("/proc/xx", "cannot be written (/"),
        (os.fsdecode(b"c\xff"), "its name is not UTF-8"),
    ],
)
def test_checkpoints_that_cannot_be_kept_are_said_before_training(
    command: Any,
    arguments: list[str],
    folder: str,
    complaint: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.txt").write_text("mine")
    monkeypatch.setattr(command, "load", lambda *how: noise(12, 12))
    monkeypatch.setattr(train, "fit", lambda *how: pytest.fail("trained"))
    line = refused(capsys, command.main, [*arguments, "--out", "out", "--checkpoints", folder])
    assert complaint in line
    assert line.startswith("error: --checkpoints: ")
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]


def test_models_that_are_trained_already_may_lie_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, schedule = noise(12, 12), train.Schedule(epochs=1)
    config = train.configuration("undefended", data, schedule, 0)
    path = checkpoints.path_of(tmp_path, config)
    checkpoints.save(path, checkpoints.fresh_network(config), config, 0.5)
    monkeypatch.setattr(folders, "obstacle", lambda path: "it can only be read")
    device = train.pick_device("cpu")
    assert train.obtain("undefended", data, schedule, 0, device, tmp_path).checkpoint == path


@pytest.mark.parametrize(
    ("dataset", "complaint", "more"),
    [
        (noise(30, 30), "undefended: images must be a multiple of 4 pixels high and wide, not 30 x 30", []),
        (noise(0, 0), "undefended: images must have pixels, not 0 x 0", []),
        (noise(30, 30), "multiple of 4 pixels", ["--sweep"]),
        (
            dataclasses.replace(noise(12, 12), labels=("A", "B", "C")),
            "notmnist: no test image of label C",
            [],
        ),
        (
            dataclasses.replace(noise(12, 12), test_labels=np.ones(6, dtype=np.int64)),
            "notmnist: no test image of label A",
            [],
        ),
        (
            dataclasses.replace(
                noise(12, 12),
                train_images=noise(12, 12, 1).train_images,
                train_labels=np.ones(1, dtype=np.int64),
            ),
            "--sweep can hold none out",
            ["--sweep"],
        ),
    ],
)
def test_images_that_cannot_be_evaluated_are_said_before_training(
    dataset: Dataset,
    complaint: str,
    more: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(evaluate, "load", lambda *how: dataset)
    monkeypatch.setattr(train, "Step", lambda *how: pytest.fail("trained"))
    given = [*EVALUATE, "--out", str(tmp_path / "out"), "--checkpoints", str(tmp_path / "c"), *more]
    assert complaint in refused(capsys, evaluate.main, given)
    assert list(tmp_path.iterdir()) == []


def test_a_pack_of_images_without_pixels_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "load", lambda *how: noise(0, 0))
    given = [*GENERATE, "--out", str(tmp_path / "p"), "--checkpoints", str(tmp_path / "c")]
    assert "undefended: images must have pixels" in refused(capsys, generate.main, given)


def test_the_command_can_be_recorded_whatever_the_folder_of_the_data_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = []

    def evaluated(*how: Any) -> dict[str, Any]:
        commands.append(how[-1])
        return {"claims": [], "figures": []}

    monkeypatch.setattr(evaluate, "load", lambda *how: noise(12, 12))
    monkeypatch.setattr(evaluate, "evaluate", evaluated)
    given = ["--data-dir", os.fsdecode(b"d\xff \xc3\xa9"), "--out", str(tmp_path / "out")]
    assert evaluate.main([*EVALUATE, *given]) == 0
    [command] = commands
    assert rf"--data-dir 'd\udcff é' --out {tmp_path / 'out'}" in command
    assert json.loads(json.dumps(command, ensure_ascii=False).encode()) == command
