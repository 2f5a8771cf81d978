"""Training learns, repeats itself, and leaves whole checkpoints or none."""

import dataclasses
import json
import multiprocessing
import os
import shutil
import signal
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._inductor import config as inductor

from ml import checkpoints as files
from ml import defenses, train
from ml.datasets import Dataset
from ml.defenses import Trial
from ml.models import Network
from ml.step import Step, products_in, products_rounded
from ml.train import Schedule, TrainingError

CPU = torch.device("cpu")
SCHEDULE = Schedule(epochs=2, batch=16)
SOON = Schedule(epochs=None, batches=8, batch=16)  # for what need not have learned anything


def obtain(
    model: str, data: Dataset, folder: Path, schedule: Schedule = SCHEDULE, seed: int = 3
) -> files.Trained:
    return train.obtain(model, data, schedule, seed, CPU, folder)


Start = Callable[..., BaseProcess]


@pytest.fixture(scope="module")
def start() -> Start:
    """Calls a function in a new process, with PyTorch imported by one that has computed nothing yet."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", __name__])

    def start(function: Callable[..., None], *arguments: object) -> BaseProcess:
        process = context.Process(target=function, args=arguments)
        process.start()
        return process

    return start


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def trained(few_digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, files.Trained]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return folder, obtain("undefended", few_digits, folder)


def test_training_learns_and_says_how_well(trained: tuple[Path, files.Trained], few_digits: Dataset) -> None:
    _, model = trained
    answers = train.predict(model.network, few_digits.test_images).argmax(1).numpy()
    assert model.clean_accuracy == np.mean(answers == few_digits.test_labels)
    assert model.clean_accuracy > 0.9


def test_a_second_call_reuses_the_checkpoint(
    trained: tuple[Path, files.Trained], few_digits: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, model = trained
    written = model.checkpoint.stat().st_mtime_ns
    again = obtain("undefended", few_digits, folder)
    assert "train" not in capsys.readouterr().err
    assert model.checkpoint.stat().st_mtime_ns == written
    assert again.checkpoint_sha256 == model.checkpoint_sha256
    for name, tensor in model.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], tensor)


def test_the_same_seed_gives_the_same_bytes(
    trained: tuple[Path, files.Trained], few_digits: Dataset, tmp_path: Path
) -> None:
    _, model = trained
    assert obtain("undefended", few_digits, tmp_path).checkpoint_sha256 == model.checkpoint_sha256
    students = [obtain("distilled", few_digits, tmp_path / folder, SOON) for folder in ("a", "b")]
    assert students[0].checkpoint_sha256 == students[1].checkpoint_sha256


def test_other_seeds_schedules_and_data_are_other_checkpoints(
    trained: tuple[Path, files.Trained], few_digits: Dataset, tmp_path: Path
) -> None:
    _, model = trained
    flipped = dataclasses.replace(few_digits, train_images=few_digits.train_images[..., ::-1].copy())
    others = [
        obtain("undefended", few_digits, tmp_path, SOON),
        obtain("undefended", few_digits, tmp_path, SOON, seed=4),
        obtain("undefended", flipped, tmp_path, SOON),
    ]
    assert len({other.checkpoint.name for other in (model, *others)}) == 4
    assert len({other.checkpoint_sha256 for other in (model, *others)}) == 4


def test_a_checkpoint_tells_its_configuration(
    trained: tuple[Path, files.Trained], few_digits: Dataset
) -> None:
    _, model = trained
    assert model.config == {
        "recipe": train.RECIPE,
        "model": "undefended",
        "dataset": "digits",
        "data_sha256": few_digits.sha256,
        "image_shape": [1, 12, 12],
        "classes": 6,
        "settings": {},
        "teacher": None,
        "schedule": {"epochs": 2, "batch": 16, "learning_rate": 1e-3, "adam_epsilon": 1e-8},
        "seed": 3,
    }
    assert set(model.versions) == {"torch", "numpy"}
    assert model.checkpoint.parent.name == "digits"
    length = int.from_bytes(model.checkpoint.read_bytes()[:8], "little")
    header = json.loads(model.checkpoint.read_bytes()[8 : 8 + length])
    assert json.loads(header["__metadata__"]["reasonable_mistakes"])["config"] == model.config


@pytest.mark.parametrize("damage", ["cut", "empty", "other", "text", "one bit"])
def test_a_damaged_or_foreign_checkpoint_is_trained_again(
    damage: str,
    trained: tuple[Path, files.Trained],
    few_digits: Dataset,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, model = trained
    good = obtain("undefended", few_digits, tmp_path, SOON)
    data = good.checkpoint.read_bytes()
    bad = {
        "cut": data[:-1000],
        "empty": b"",
        "other": model.checkpoint.read_bytes(),
        "text": b"not tensors" * 9,
        "one bit": data[:-1000] + bytes([data[-1000] ^ 1]) + data[-999:],
    }
    assert good.checked
    good.checkpoint.write_bytes(bad[damage])
    capsys.readouterr()
    again = obtain("undefended", few_digits, tmp_path, SOON)
    complaint = "made with another configuration" if damage == "other" else "not a readable checkpoint"
    assert f"{good.checkpoint}: {complaint}" in capsys.readouterr().err
    assert again.checkpoint_sha256 == good.checkpoint_sha256


def test_a_checkpoint_without_a_checksum_is_read_but_not_checked(
    trained: tuple[Path, files.Trained], tmp_path: Path
) -> None:
    """As the first checkpoints were."""
    _, model = trained
    data = model.checkpoint.read_bytes()
    old = tmp_path / "old.safetensors"
    old.write_bytes(data.replace(b"weights_sha256", b"weights_nosums"))
    assert not files.load(old).checked
    assert files.load(model.checkpoint).checked


def test_distillation_trains_a_teacher_and_learns_its_probabilities(
    few_digits: Dataset, tmp_path: Path
) -> None:
    student = obtain("distilled", few_digits, tmp_path)
    names = checkpoints(tmp_path)
    assert [name.rsplit("-", 1)[0] for name in names] == ["distillation_teacher", "distilled"]
    assert student.config["settings"] == {"temperature": 50.0}
    assert student.clean_accuracy > 0.9
    # Trained at T = 50 the logits are about 50 times as far apart as they would need to be at T = 1.
    logits = train.predict(student.network, few_digits.test_images)
    assert float((logits.max(1).values - logits.mean(1)).mean()) > 20


def test_gradient_regularization_makes_input_gradients_smaller(
    trained: tuple[Path, files.Trained], few_digits: Dataset, tmp_path: Path
) -> None:
    """Those of the cross-entropy against the uniform label, of test images."""

    def size(model: files.Trained) -> float:
        x = torch.from_numpy(few_digits.test_images / np.float32(255)).requires_grad_()
        loss = -model.network(x).log_softmax(1).mean(1).sum()
        (gradient,) = torch.autograd.grad(loss, x)
        return float(gradient.flatten(1).norm(dim=1).mean())

    regularized = obtain("gradient_regularized", few_digits, tmp_path)
    assert regularized.clean_accuracy > 0.8
    assert size(regularized) < size(trained[1]) / 2


KILLED = Schedule(epochs=3, batch=16)


@pytest.fixture(scope="module")
def fewer_digits(few_digits: Dataset) -> Dataset:
    """For epochs of 16 steps."""
    images, labels = few_digits.train_images[:256], few_digits.train_labels[:256]
    return dataclasses.replace(few_digits, train_images=images, train_labels=labels)


def train_to_be_killed(data: Dataset, folder: Path) -> None:
    obtain("gradient_regularized", data, folder, KILLED)


def test_a_killed_training_goes_on_and_ends_with_the_same_bytes(
    fewer_digits: Dataset, tmp_path: Path, start: Start
) -> None:
    """Killed again and again, each time as soon as it has kept a further epoch."""
    folder = tmp_path / "killed"
    config = train.configuration("gradient_regularized", fewer_digits, KILLED, 3)
    progress = files.progress_path(files.path_of(folder, config))
    kept, lives = 0, 0
    while True:
        lives += 1
        process = start(train_to_be_killed, fewer_digits, folder)
        while process.is_alive() and (not progress.exists() or progress.stat().st_mtime_ns == kept):
            time.sleep(0.002)
        if process.is_alive():
            process.kill()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        assert not list(folder.rglob("*.safetensors"))
        kept = progress.stat().st_mtime_ns
    assert lives > 2, "it was not killed twice"
    whole = obtain("gradient_regularized", fewer_digits, tmp_path / "whole", KILLED)
    resumed = obtain("gradient_regularized", fewer_digits, folder, KILLED)
    assert resumed.checkpoint_sha256 == whole.checkpoint_sha256
    assert checkpoints(tmp_path) == [whole.checkpoint.name] * 2


def test_going_on_from_any_epoch_is_what_not_stopping_would_have_been(
    fewer_digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in the middle of an epoch's end, where the schedule counts batches and ends within an epoch."""
    schedule = Schedule(epochs=None, batches=40, batch=16)
    whole = obtain("undefended", fewer_digits, tmp_path / "whole", schedule)

    keep = files.save_progress

    def keep_and_stop(*arguments: Any) -> None:
        keep(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(files, "save_progress", keep_and_stop)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                obtain("undefended", fewer_digits, tmp_path / "stopped", schedule)
    assert obtain("undefended", fewer_digits, tmp_path / "stopped", schedule).checkpoint_sha256 == (
        whole.checkpoint_sha256
    )


@pytest.mark.parametrize("damage", ["cut", "other", "shape"])
def test_a_damaged_or_foreign_unfinished_training_is_begun_anew(
    damage: str, few_digits: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = train.configuration("undefended", few_digits, SOON, 3)
    path = files.path_of(tmp_path, config)
    network = Network((1, 8, 8) if damage == "shape" else (1, 12, 12))
    other = {**config, "seed": 4} if damage == "other" else config
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.rand(2, *network.image_shape)).sum().backward()
    optimizer.step()
    files.save_progress(path, network, optimizer, other, 7)
    if damage == "cut":
        files.progress_path(path).write_bytes(files.progress_path(path).read_bytes()[:-9])
    made = obtain("undefended", few_digits, tmp_path, SOON)
    assert "beginning anew" in capsys.readouterr().err
    assert made.checkpoint_sha256 == obtain("undefended", few_digits, tmp_path / "b", SOON).checkpoint_sha256


def be_killed_while_saving(folder: Path) -> None:
    def die(fd: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = die
    files.save(folder / "undefended-0.safetensors", Network((1, 12, 12)), {}, 0.5)


def test_a_process_killed_while_saving_leaves_no_checkpoint(tmp_path: Path, start: Start) -> None:
    """The worst moment: the file is written but has not got its name yet."""
    process = start(be_killed_while_saving, tmp_path)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(checkpoints(tmp_path)) == 1
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_failed_save_cleans_up_after_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.save(tmp_path / "undefended-0.safetensors", Network((1, 12, 12)), {}, 0.5)
    assert checkpoints(tmp_path) == []


def test_compiled_and_eager_steps_agree() -> None:
    network = Network((1, 12, 12))
    network.initialize(torch.Generator().manual_seed(0))
    x = torch.rand(8, 1, 12, 12, generator=torch.Generator().manual_seed(1))
    targets = F.one_hot(torch.arange(8), 10).float()
    keep = network.dropout_mask(8, torch.Generator().manual_seed(2))
    results, has_compiler = [], shutil.which(os.environ.get("CXX", "g++")) is not None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # within PyTorch's compiler
        for compiled in (True, False):
            step = Step(defenses.uniform_gradient_penalty, {"penalty": 100.0}, compiled)
            loss, logits, _ = step(network, x, targets, keep)
            assert (step._compiled is not None) == (compiled and has_compiler), "it was not compiled"
            network.zero_grad()
            loss.backward()
            gradients = [p.grad.clone() for p in network.parameters() if p.grad is not None]
            results.append((loss, logits, gradients))
    (loss, logits, gradients), (expected_loss, expected_logits, expected) = results
    assert torch.allclose(loss, expected_loss, rtol=1e-4)
    assert torch.allclose(logits, expected_logits, atol=1e-4)
    for mine, other in zip(gradients, expected, strict=True):
        assert torch.allclose(mine, other, rtol=1e-2, atol=1e-4 * float(other.abs().max()))


def two_steps_without_a_compiler(folder: Path) -> None:
    inductor.cpp.cxx = (None, "no-such-compiler")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)  # where nothing is compiled yet

    def objective(network: Network, x: Tensor, targets: Tensor, keep: Tensor) -> Trial:
        logits = network.dense2(keep)
        return F.mse_loss(logits, targets), logits, []

    network, step = Network((1, 4, 4)), Step(objective, {}, compiled=True)
    with (folder / "said.txt").open("w") as said, redirect_stdout(said):
        for _ in range(2):
            loss, _, _ = step(network, torch.rand(8, 1, 4, 4), torch.rand(8, 10), torch.rand(8, 1024))
            loss.backward()
        print("loss", loss.item())


def test_without_a_compiler_training_goes_on_eagerly(tmp_path: Path, start: Start) -> None:
    """In a process of its own, which has not found a compiler before."""
    process = start(two_steps_without_a_compiler, tmp_path)
    process.join()
    assert process.exitcode == 0
    said = (tmp_path / "said.txt").read_text()
    assert said.count("torch.compile does not work here") == 1
    assert "training eagerly" in said
    assert "loss" in said


def test_a_loss_that_explodes_stops_training(few_digits: Dataset, tmp_path: Path) -> None:
    wild = Schedule(epochs=4, batch=16, learning_rate=1e30)
    with pytest.raises(TrainingError, match=r"the loss became (nan|inf)"):
        obtain("undefended", few_digits, tmp_path, wild)
    assert checkpoints(tmp_path) == []


def test_a_gpu_that_is_not_there_is_one_clear_line() -> None:
    assert train.pick_device("cpu") == CPU
    if torch.cuda.is_available():
        assert train.pick_device("auto").type == train.pick_device("cuda").type == "cuda"
    else:
        assert train.pick_device("auto") == CPU
        with pytest.raises(TrainingError, match="--device cuda: PyTorch finds no GPU"):
            train.pick_device("cuda")


def test_a_teacher_trained_otherwise_is_another_student(
    few_digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def student() -> dict[str, Any]:
        return train.configuration("distilled", few_digits, SCHEDULE, 3)

    before = student()
    other = dataclasses.replace(defenses.DEFENSES["distillation_teacher"], settings={"temperature": 5.0})
    monkeypatch.setitem(defenses.DEFENSES, "distillation_teacher", other)
    assert student() == before | {"teacher_settings": {"temperature": 5.0}}


def test_products_in_bfloat16_are_another_training_of_the_same_accuracy(
    trained: tuple[Path, files.Trained], few_digits: Dataset, tmp_path: Path
) -> None:
    rounded = dataclasses.replace(SCHEDULE, precision="bfloat16")
    if not products_rounded("bfloat16"):
        with pytest.raises(TrainingError, match="cpu here cannot train with products in bfloat16"):
            obtain("undefended", few_digits, tmp_path, rounded)
        return
    _, model = trained
    other = obtain("undefended", few_digits, tmp_path, rounded)
    assert other.config["schedule"] == {**model.config["schedule"], "precision": "bfloat16"}
    assert other.checkpoint.name != model.checkpoint.name
    assert abs(other.clean_accuracy - model.clean_accuracy) < 0.03
    difference = other.network.dense1.weight - model.network.dense1.weight
    assert 0 < float(difference.norm() / model.network.dense1.weight.norm()) < 0.2


def test_only_products_within_are_rounded() -> None:
    factor, ones = torch.full((256, 256), 1 + 2**-12), torch.ones(256, 256)

    def product_and_error() -> None:
        with products_in("bfloat16"):
            inside.append(factor @ ones)
            raise ZeroDivisionError

    inside: list[torch.Tensor] = []
    with pytest.raises(ZeroDivisionError):
        product_and_error()
    outside = factor @ ones
    with products_in(None):
        assert torch.equal(factor @ ones, outside)
    assert bool((outside == 256 * (1 + 2**-12)).all())
    assert bool((inside[0] == 256).all()) == products_rounded("bfloat16")
