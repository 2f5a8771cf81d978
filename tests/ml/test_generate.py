"""The whole chain: a pack whose every image is what its manifest says."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ml import attacks, datasets, generate, pack, pairs, train, verify
from ml.datasets import Dataset
from tests.ml.conftest import ROOT, Run, mnist_dirs

CPU = torch.device("cpu")


def pixels(of: pack.Pack, sha256: str) -> pack.Pixels:
    return pack.decode_png(of.image(sha256))


def models(of: pack.Pack) -> dict[str, dict[str, Any]]:
    """What the manifest says of each model."""
    return {record["name"]: record for record in of.manifest["models"]}


def check_against_data(made: pack.Pack, dataset: Dataset) -> None:
    """Originals are the test images they name; distances are those of the stored images."""
    for image in (*made.originals, *made.clean):
        assert np.array_equal(pixels(made, image.sha256), dataset.test_images[image.source_index, 0])
        assert image.source_label == dataset.labels[dataset.test_labels[image.source_index]]
    originals = {image.source_index for image in made.originals}
    assert originals == {stimulus.source_index for stimulus in made.stimuli}
    assert not originals & {image.source_index for image in made.clean}
    assert [image.source_label for image in made.clean] == [label for label in made.labels for _ in range(2)]
    for stimulus in made.stimuli:
        assert stimulus.source_label == dataset.labels[dataset.test_labels[stimulus.source_index]]
        before = dataset.test_images[stimulus.source_index, 0].astype(int)
        after = pixels(made, stimulus.sha256).astype(int)
        assert stimulus.pixels_changed == np.count_nonzero(after != before) > 0
        assert stimulus.l2 == pytest.approx(np.sqrt(np.sum((after - before) ** 2)) / 255, abs=2e-6)
        assert stimulus.linf == pytest.approx(np.max(np.abs(after - before)) / 255, abs=2e-6)


def check_against_models(made: pack.Pack, dataset: Dataset, checkpoints: Path) -> None:
    """Every image, read as anyone would read it, is classified as its manifest says."""
    for name in made.models:
        record = models(made)[name]
        schedule = train.Schedule(**record["training"]["schedule"])
        model = train.obtain(name, dataset, schedule, record["training"]["seed"], CPU, checkpoints)
        assert model.checkpoint_sha256 == record["checkpoint_sha256"]
        assert model.config == record["training"]
        stimuli = [stimulus for stimulus in made.stimuli if stimulus.model == name]
        images = np.stack([pixels(made, stimulus.sha256) for stimulus in stimuli])[:, None]
        logits = train.predict(model.network, images)
        predicted = [made.labels[i] for i in logits.argmax(1)]
        assert predicted == [stimulus.target_label for stimulus in stimuli]
        probabilities = logits.double().softmax(1)
        for stimulus, row in zip(stimuli, probabilities, strict=True):
            target = float(row[made.labels.index(stimulus.target_label)])
            assert stimulus.target_probability == pytest.approx(target, abs=1e-4)
        clean = np.stack([pixels(made, image.sha256) for image in (*made.originals, *made.clean)])[:, None]
        answers = train.predict(model.network, clean).argmax(1)
        labels = [image.source_label for image in (*made.originals, *made.clean)]
        assert [made.labels[i] for i in answers] == labels


def check_cells(made: pack.Pack) -> None:
    """Every model has the same pairs, and every label enough of them; JSMA's limits are kept."""
    cells = {
        model: {(s.source_index, s.target_label) for s in made.stimuli if s.model == model}
        for model in made.models
    }
    assert made.models == ("undefended", "distilled", "gradient_regularized")
    assert cells["undefended"] == cells["distilled"] == cells["gradient_regularized"]
    for label in made.labels:
        of_label = {(s.source_index, s.target_label) for s in made.stimuli if s.source_label == label}
        assert len(of_label) >= 9
        assert len({source for source, _ in of_label}) >= 3
    if made.manifest["attack"]["name"] == "jsma":
        for stimulus in made.stimuli:
            assert 1 <= stimulus.iterations <= 98
            assert stimulus.pixels_changed == 2 * stimulus.iterations


def check_grids(made: pack.Pack, dataset: Dataset) -> None:
    """Cells have native size; the diagonal is unmodified; stimuli of a first source image are in their places."""
    height, width = dataset.test_images.shape[2:]
    for model, sha256 in made.grids.items():
        grid = pixels(made, sha256)
        assert grid.shape == (10 * (height + 1) + 1, 10 * (width + 1) + 1)
        cells = grid[1:, 1:].reshape(10, height + 1, 10, width + 1)[:, :height, :, :width].swapaxes(1, 2)
        seen = 0
        for row, label in enumerate(made.labels):
            test_images = dataset.test_images[dataset.test_labels == row]
            [first] = [
                i for i, image in enumerate(test_images[:50]) if np.array_equal(cells[row, row], image[0])
            ]
            index = int(np.flatnonzero(dataset.test_labels == row)[first])
            for stimulus in made.stimuli:
                if stimulus.model == model and stimulus.source_index == index:
                    column = made.labels.index(stimulus.target_label)
                    assert stimulus.source_label == label
                    assert np.array_equal(cells[row, column], pixels(made, stimulus.sha256))
                    seen += 1
        assert seen > 10


def test_digits_end_to_end(digits_run: Run) -> None:
    digits = datasets.load("digits")
    check_cells(digits_run.pack)
    check_against_data(digits_run.pack, digits)
    check_against_models(digits_run.pack, digits, digits_run.checkpoints)
    check_grids(digits_run.pack, digits)
    command = ["verify", str(digits_run.out), "--checkpoints", str(digits_run.checkpoints)]
    assert verify.main(command) == 0


def test_the_manifest_says_how_the_pack_was_made(digits_run: Run) -> None:
    manifest = digits_run.pack.manifest
    assert manifest["name"] == "digits-jsma"
    assert manifest["attack"] == {"name": "jsma", "parameters": {"theta": 1.0, "gamma": 0.25}}
    assert manifest["seed"] == 1
    assert set(manifest["dataset"]) == {"name", "source", "licence", "files"}
    assert set(manifest["versions"]) == {"python", "torch", "numpy", "pillow", "reasonable-mistakes"}
    for model in manifest["models"]:
        rate = model["success_rate_before_filter"]
        assert rate["rate"] == round(rate["count"] / rate["n"], 6)
        assert rate["count"] >= len(digits_run.pack.stimuli) / 3
        assert model["clean_accuracy"] > 0.8


def test_the_summary_and_the_progress_are_shown(digits_run: Run) -> None:
    made = digits_run.pack
    for name in made.models:
        record = models(made)[name]
        rate = record["success_rate_before_filter"]
        line = next(line for line in digits_run.stdout.splitlines() if line.startswith(name))
        assert f"{record['clean_accuracy']:.2%}" in line
        assert f"{rate['count']} of {rate['n']}" in line
        assert f"train {name}" in digits_run.stderr
        assert f"jsma on {name}" in digits_run.stderr
    for label in made.labels:
        pairs = {(s.source_index, s.target_label) for s in made.stimuli if s.source_label == label}
        sources = {source for source, _ in pairs}
        assert re.search(
            rf"^  {label}: {len(pairs)} of \d+ \({len(sources)}\)$", digits_run.stdout, re.MULTILINE
        )
    assert f"{len(made.stimuli)} stimuli" in digits_run.stdout
    assert made.pack_sha256 in digits_run.stdout


def small_pack(
    dataset: Dataset, out: Path, checkpoints: Path, attack: str = "jsma", seed: int = 2
) -> pack.Pack:
    return generate.generate(
        dataset, attack, out, seed, train.schedule_for("digits", epochs=4), CPU, checkpoints
    )


def test_the_same_seed_gives_the_same_bytes(
    small_digits: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = small_pack(small_digits, tmp_path / "a" / "small", tmp_path / "a-checkpoints")
    again = small_pack(small_digits, tmp_path / "b" / "small", tmp_path / "b-checkpoints")
    assert again.pack_sha256 == first.pack_sha256
    for path in (tmp_path / "a").rglob("*.*"):
        assert (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes() == path.read_bytes()
    check_cells(first)
    check_against_data(first, small_digits)

    # Over the pack that is there, from the checkpoints that are there.
    capsys.readouterr()
    small_pack(small_digits, tmp_path / "a" / "small", tmp_path / "a-checkpoints")
    shown = capsys.readouterr()
    assert "train " not in shown.err
    assert f"Replaced {tmp_path / 'a' / 'small'}" in shown.out
    assert pack.read(tmp_path / "a" / "small").pack_sha256 == first.pack_sha256

    tgsm = small_pack(small_digits, tmp_path / "tgsm", tmp_path / "a-checkpoints", attack="tgsm")
    assert tgsm.manifest["attack"] == {"name": "tgsm", "parameters": {"steps": 10, "epsilon": 0.1}}
    assert {stimulus.iterations for stimulus in tgsm.stimuli} == {10}
    check_cells(tgsm)
    check_against_data(tgsm, small_digits)
    check_against_models(tgsm, small_digits, tmp_path / "a-checkpoints")


class Stubborn(torch.nn.Module):
    """A network on 144 pixels that can be moved only on images whose first pixel is bright.

    On others it answers the label in the second pixel, whatever happens to the rest.
    """

    def __init__(self, bright: float) -> None:
        super().__init__()
        self.bright = torch.nn.Parameter(torch.tensor(bright))
        self.weight = torch.nn.Parameter(torch.randn(144, 10, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        willing = (x[:, 0, 0, :1] >= self.bright).float()
        own = torch.nn.functional.one_hot((x[:, 0, 0, 1] * 255).round().long().clamp(max=9), 10)
        return willing * (x.flatten(1) @ self.weight) + (1 - willing) * own


def test_further_images_follow_where_too_few_pairs_survive(small_digits: Dataset) -> None:
    images = np.zeros_like(small_digits.test_images)
    labels = small_digits.test_labels
    images[:, 0, 0, 1] = labels
    images[:, 0, 5, 5] = np.arange(len(labels)) % 256  # no two the same
    for label in range(10):
        # Of every label the first six images cannot be moved; the first two are not even read rightly.
        images[np.flatnonzero(labels == label)[6:], 0, 0, 0] = 255
    right = np.ones(len(labels), dtype=bool)
    for label in range(10):
        right[np.flatnonzero(labels == label)[:2]] = False
    dataset = dataclasses.replace(small_digits, test_images=images)
    networks: dict[str, torch.nn.Module] = {"undefended": Stubborn(0.5), "distilled": Stubborn(0.4)}
    attempts, skipped = pairs.attack_enough(dataset, networks, "jsma", right)

    assert len(skipped) == 20
    assert {record["reason"] for record in skipped} == {"misclassified unmodified by at least one model"}
    for label in range(10):
        of_label = np.flatnonzero(labels == label)
        tried = sorted(set(attempts.sources[labels[attempts.sources] == label]))
        survived = set(attempts.sources[attempts.survivors & (labels[attempts.sources] == label)])
        assert tried == of_label[2 : 2 + len(tried)].tolist(), "in the order of the test set, none twice"
        assert len(tried) > 3
        assert len(survived) >= 3
        assert survived <= set(of_label[6:])


@pytest.mark.parametrize("resisting", [37, 38])
def test_40_images_of_a_label_are_attacked_before_it_is_given_up(
    small_digits: Dataset, resisting: int
) -> None:
    labels = np.repeat(np.arange(10), 50)
    images = np.zeros((500, 1, 12, 12), dtype=np.uint8)
    images[:, 0, 0, 1] = labels
    images[:, 0, 5, 5] = np.arange(500) % 50  # no two the same
    images[:, 0, 0, 0] = 255
    images[:resisting, 0, 0, 0] = 0  # of label 0, and only the three that follow make it enough
    dataset = dataclasses.replace(small_digits, test_images=images, test_labels=labels)
    right = np.ones(500, dtype=bool)
    networks: dict[str, torch.nn.Module] = {"undefended": Stubborn(0.5)}
    if resisting > 37:
        with pytest.raises(pairs.PairsError, match="label 0: only 18 pairs from 2 of 40 images fool every"):
            pairs.attack_enough(dataset, networks, "jsma", right)
    else:
        attempts, _ = pairs.attack_enough(dataset, networks, "jsma", right)
        of_label = labels[attempts.sources] == 0
        assert sorted(set(attempts.sources[of_label])) == list(range(40))
        assert set(attempts.sources[of_label & attempts.survivors]) == {37, 38, 39}


def test_networks_are_asked_about_the_test_images_that_matter_and_once(
    small_digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks: dict[str, torch.nn.Module] = {"undefended": Stubborn(0.5), "distilled": Stubborn(0.4)}
    answers = [train.predict(n, small_digits.test_images).argmax(1).numpy() for n in networks.values()]
    expected = (np.stack(answers) == small_digits.test_labels).all(0)
    assert 0 < expected.mean() < 1
    asked = []

    def counted(network: torch.nn.Module, images: Any) -> torch.Tensor:
        asked.append(len(images))
        return predict(network, images)

    predict = train.predict
    monkeypatch.setattr(train, "predict", counted)
    right = pairs.RightAnswers(small_digits, networks)
    assert not asked
    assert right[3] == expected[3]
    assert asked == [250, 250]
    assert [bool(right[index]) for index in range(len(expected))] == expected.tolist()
    assert sum(asked) == 2 * len(expected)


def test_another_penalty_is_another_checkpoint(small_digits: Dataset, tmp_path: Path) -> None:
    schedule = train.Schedule(epochs=1, batch=64)
    for penalties in ({}, {"gradient_regularized": 3.0}):
        judges = generate.judges_for(
            ["gradient_regularized"], small_digits, schedule, 2, CPU, tmp_path, penalties
        )
        stated = judges["gradient_regularized"].record["training"]["settings"]
        assert stated == {"penalty": penalties.get("gradient_regularized", 20.0)}
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2


def test_a_penalty_for_a_model_that_is_not_trained_is_refused(small_digits: Dataset, tmp_path: Path) -> None:
    schedule = train.Schedule(epochs=1, batch=64)
    with pytest.raises(generate.GenerateError, match="--penalty double_backprop: not trained here"):
        generate.judges_for(
            ["gradient_regularized"], small_digits, schedule, 2, CPU, tmp_path, {"double_backprop": 7.0}
        )
    assert list(tmp_path.iterdir()) == []


def test_an_attack_is_given_what_it_asks_for_and_progress_shows_all_the_same(small_digits: Dataset) -> None:
    def shortest(
        model: attacks.Model, images: torch.Tensor, targets: torch.Tensor, bright: float
    ) -> attacks.AttackResult:
        x = torch.full_like(images, bright)
        n = len(x)
        return attacks.AttackResult(
            x, model(x).argmax(1), torch.ones(n, dtype=torch.int64), torch.ones(n, dtype=torch.bool)
        )

    done: list[int] = []
    network, images = Stubborn(0.5), small_digits.test_images[: attacks.CHUNK + 3]
    targets = np.zeros(len(images), dtype=np.int64)
    attacked = pairs.attack_pairs(network, images, targets, shortest, {"bright": 0.2}, done.append)
    assert (attacked.pixels == 51).all()
    assert sum(done) == len(images)


def test_too_few_images_that_fool_every_model_is_one_clear_line(small_digits: Dataset) -> None:
    right = np.ones(len(small_digits.test_labels), dtype=bool)
    with pytest.raises(pairs.PairsError, match=r"label 0: only 0 pairs from 0 of \d+ images fool every"):
        pairs.attack_enough(small_digits, {"undefended": Stubborn(2.0)}, "jsma", right)


def test_no_two_source_images_have_the_same_pixels(small_digits: Dataset) -> None:
    """A participant who saw the same digit twice, once altered, would know the original."""
    images, labels = small_digits.test_images.copy(), small_digits.test_labels
    threes = np.flatnonzero(labels == 3)
    images[threes[1]] = images[threes[0]]
    dataset = dataclasses.replace(small_digits, test_images=images)
    right = np.ones(len(labels), dtype=bool)
    attempts, skipped = pairs.attack_enough(dataset, {"undefended": Stubborn(-1.0)}, "jsma", right)
    tried = sorted(set(attempts.sources[labels[attempts.sources] == 3]))
    assert tried[:2] == [threes[0], threes[2]]
    assert skipped == [
        {"source_index": threes[1], "source_label": "3", "reason": "the same pixels as an earlier image"}
    ]
    manifest, _ = generate.assemble(dataset, attempts, right)
    shown = [image["sha256"] for image in (*manifest["originals"], *manifest["clean"])]
    assert len(shown) == len(set(shown))


def test_a_folder_that_is_no_pack_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    command = [
        sys.executable,
        "-m",
        "ml.generate",
        "--dataset",
        "digits",
        "--attack",
        "jsma",
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path}: exists and is not a stimulus pack; choose another --out\n"
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--epochs", "0"],
        ["--dataset", "cifar"],
        ["--attack", "fgsm"],
        ["--penalty", "undefended=3"],
        ["--penalty", "double_backprop=-1"],
        ["--penalty", "double_backprop=nan"],
        ["--penalty", "double_backprop"],
        [],
    ],
)
def test_wrong_arguments_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--dataset", "digits", "--attack", "jsma", *arguments] if arguments else []
    with pytest.raises(SystemExit) as caught:
        generate.main(given)
    assert caught.value.code == 2
    assert "usage: python -m ml.generate" in capsys.readouterr().err


COMMITTED = ROOT / "stimuli" / "mnist-jsma"


def test_the_committed_pack_is_the_study_s() -> None:
    made = pack.read(COMMITTED)
    check_cells(made)
    assert made.name == "mnist-jsma"
    assert {model["training"]["schedule"]["epochs"] for model in made.manifest["models"]} == {4}
    assert set(made.manifest["dataset"]["files"]) == set(datasets.MNIST.md5)
    readme = (COMMITTED / "README.md").read_text(encoding="utf-8")
    assert made.pack_sha256 in readme
    for name in made.models:
        record = models(made)[name]
        rate = record["success_rate_before_filter"]
        assert f"{record['clean_accuracy']:.2%}" in readme
        assert f"{rate['count']} of {rate['n']}" in readme


@pytest.mark.parametrize("folder", mnist_dirs)
def test_the_committed_pack_is_made_from_mnist(folder: Path) -> None:
    mnist = datasets.load("mnist", folder)
    made = pack.read(COMMITTED)
    assert made.manifest["dataset"]["files"] == mnist.files
    for model in made.manifest["models"]:
        assert model["training"]["data_sha256"] == mnist.sha256
    check_against_data(made, mnist)
    check_grids(made, mnist)
