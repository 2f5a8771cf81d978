"""The whole chain: a pack whose every image is what its manifest says."""

import dataclasses
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ml import attacks, datasets, generate, pack, pairs, train, verify
from ml.datasets import Dataset
from tests.ml.conftest import FEW, ROOT, mnist_dirs

CPU = torch.device("cpu")
SEED = 2


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


def check_cells(made: pack.Pack, names: tuple[str, ...] = generate.STUDY_MODELS) -> None:
    """Every model has the same pairs, and every label enough of them; JSMA's limits are kept."""
    cells = {
        model: {(s.source_index, s.target_label) for s in made.stimuli if s.model == model}
        for model in made.models
    }
    assert made.models == names
    assert all(cells[name] == cells[names[0]] for name in names)
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
    count, height, width = len(made.labels), *dataset.test_images.shape[2:]
    for model, sha256 in made.grids.items():
        grid = pixels(made, sha256)
        assert grid.shape == (count * (height + 1) + 1, count * (width + 1) + 1)
        cells = (
            grid[1:, 1:].reshape(count, height + 1, count, width + 1)[:, :height, :, :width].swapaxes(1, 2)
        )
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


@dataclass(frozen=True)
class Run:
    """A pack that was made, and what was said meanwhile."""

    out: Path
    checkpoints: Path
    stdout: str
    stderr: str
    pack: pack.Pack


@pytest.fixture(scope="module")
def run(few_digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The study's three networks, trained and attacked by JSMA."""
    folder = tmp_path_factory.mktemp("digits")
    out, checkpoints, stdout, stderr = folder / "digits-jsma", folder / "checkpoints", StringIO(), StringIO()
    with redirect_stdout(stdout), redirect_stderr(stderr):
        made = generate.generate(few_digits, "jsma", out, SEED, FEW, CPU, checkpoints)
    return Run(out, checkpoints, stdout.getvalue(), stderr.getvalue(), made)


def test_a_pack_is_of_its_data_and_its_networks(run: Run, few_digits: Dataset) -> None:
    check_cells(run.pack)
    check_against_data(run.pack, few_digits)
    check_against_models(run.pack, few_digits, run.checkpoints)
    check_grids(run.pack, few_digits)
    assert verify.main(["verify", str(run.out), "--checkpoints", str(run.checkpoints)]) == 0


def test_digits_end_to_end(tmp_path: Path) -> None:
    """The whole chain as a user starts it, on the bundled digits: of fewer steps and with one network."""
    out, checkpoints = tmp_path / "digits-tgsm", tmp_path / "checkpoints"
    command = [sys.executable, "-m", "ml.generate", "--dataset", "digits", "--attack", "tgsm"]
    command += ["--model", "undefended", "--epochs", "2", "--seed", "1", "--device", "cpu"]
    command += ["--out", str(out), "--checkpoints", str(checkpoints)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    made, digits = pack.read(out), datasets.load("digits")
    assert (made.name, made.manifest["seed"]) == ("digits-tgsm", 1)
    assert models(made)["undefended"]["training"]["schedule"]["epochs"] == 2
    check_cells(made, ("undefended",))
    check_against_data(made, digits)
    check_against_models(made, digits, checkpoints)
    check_grids(made, digits)
    assert "train undefended" in done.stderr
    assert "tgsm on undefended" in done.stderr
    assert f"Wrote {out} (pack_sha256 {made.pack_sha256})." in done.stdout
    assert verify.main(["verify", str(out), "--checkpoints", str(checkpoints)]) == 0


def test_without_options_the_study_s_networks_are_trained_by_its_schedule(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(generate, "generate", lambda dataset, *rest: asked.append((dataset.name, *rest)))
    assert generate.main(["--dataset", "digits", "--attack", "jsma", "--device", "cpu"]) == 0
    schedule, names = train.Schedule(epochs=3, batch=64), ("undefended", "distilled", "gradient_regularized")
    out, checkpoints = Path("stimuli/digits-jsma"), Path("checkpoints")
    assert asked == [("digits", "jsma", out, 0, schedule, CPU, checkpoints, names, {})]


def test_the_manifest_says_how_the_pack_was_made(run: Run) -> None:
    manifest = run.pack.manifest
    assert manifest["name"] == "digits-jsma"
    assert manifest["attack"] == {"name": "jsma", "parameters": {"theta": 1.0, "gamma": 0.25}}
    assert manifest["seed"] == SEED
    assert set(manifest["dataset"]) == {"name", "source", "licence", "files"}
    assert set(manifest["versions"]) == {"python", "torch", "numpy", "pillow", "reasonable-mistakes"}
    for model in manifest["models"]:
        rate = model["success_rate_before_filter"]
        assert rate["rate"] == round(rate["count"] / rate["n"], 6)
        assert rate["count"] >= len(run.pack.stimuli) / 3
        assert model["clean_accuracy"] > 0.8


def test_the_summary_and_the_progress_are_shown(run: Run) -> None:
    made = run.pack
    for name in made.models:
        record = models(made)[name]
        rate = record["success_rate_before_filter"]
        line = next(line for line in run.stdout.splitlines() if line.startswith(name))
        assert f"{record['clean_accuracy']:.2%}" in line
        assert f"{rate['count']} of {rate['n']}" in line
        assert f"train {name}" in run.stderr
        assert f"jsma on {name}" in run.stderr
    for label in made.labels:
        pairs = {(s.source_index, s.target_label) for s in made.stimuli if s.source_label == label}
        sources = {source for source, _ in pairs}
        assert re.search(rf"^  {label}: {len(pairs)} of \d+ \({len(sources)}\)$", run.stdout, re.MULTILINE)
    assert f"{len(made.stimuli)} stimuli" in run.stdout
    assert made.pack_sha256 in run.stdout


def test_the_same_seed_gives_the_same_bytes(
    run: Run, few_digits: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Elsewhere, and once more from the checkpoints that are there; then another pack in that one's place."""
    out, checkpoints = tmp_path / "digits-jsma", tmp_path / "checkpoints"
    shutil.copytree(run.checkpoints, checkpoints)
    again = generate.generate(few_digits, "jsma", out, SEED, FEW, CPU, checkpoints)
    shown = capsys.readouterr()
    assert "train " not in shown.err
    assert f"Wrote {out}" in shown.out
    assert again.pack_sha256 == run.pack.pack_sha256
    files = [path.relative_to(run.out) for path in run.out.rglob("*.*")]
    assert sorted(files) == sorted(path.relative_to(out) for path in out.rglob("*.*"))
    assert len(files) > 100
    for path in files:
        assert (out / path).read_bytes() == (run.out / path).read_bytes()

    tgsm = generate.generate(few_digits, "tgsm", out, SEED, FEW, CPU, checkpoints)
    shown = capsys.readouterr()
    assert "train " not in shown.err
    assert f"Replaced {out}" in shown.out
    assert pack.read(out).pack_sha256 == tgsm.pack_sha256 != again.pack_sha256
    assert tgsm.manifest["attack"] == {"name": "tgsm", "parameters": {"steps": 10, "epsilon": 0.1}}
    assert {stimulus.iterations for stimulus in tgsm.stimuli} == {10}
    check_cells(tgsm)
    check_against_data(tgsm, few_digits)
    check_against_models(tgsm, few_digits, checkpoints)


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


def test_another_penalty_is_another_checkpoint(few_digits: Dataset, tmp_path: Path) -> None:
    schedule = train.Schedule(epochs=None, batches=2, batch=16)
    for penalties in ({}, {"gradient_regularized": 3.0}):
        judges = generate.judges_for(
            ["gradient_regularized"], few_digits, schedule, 2, CPU, tmp_path, penalties
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
