"""`python -m ml.pack verify`: a pack that is right passes, and each kind of fault is named, and nothing besides.

The pack is a small one made by hand: three patterns as labels, and three networks that see which pattern's features
are nearest. Its numbers are computed here, by other means than in `ml/generate.py`.
"""

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from ml import checkpoints, pack, verify
from ml.attacks import ATTACKS
from ml.datasets import Dataset
from ml.models import Network
from tests.ml.conftest import ROOT

MODELS = ("undefended", "distilled", "zebra")
LABELS = ("cat", "dog", "eel")
SIDE = 8
PER_LABEL = 4  # test images: test image 3 n + k is the n-th of label k; 0 and 1 are attacked, 3 is clean

Images = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Example:
    """The pack as it should be, and what it was made from."""

    directory: Path
    checkpoints: Path
    dataset: Dataset


@dataclass
class Copy:
    """A copy of the pack to damage. The manifest's hash is made right again, so only `verify` can tell."""

    directory: Path
    manifest: dict[str, Any]
    extra: dict[str, bytes]

    def stimulus(self, model: str, source: int, target: str) -> dict[str, Any]:
        cell = (model, source, target)
        keys = ("model", "source_index", "target_label")
        return next(s for s in self.manifest["stimuli"] if tuple(s[key] for key in keys) == cell)

    def unmodified(self, index: int) -> dict[str, Any]:
        records = self.manifest["originals"] + self.manifest["clean"]
        return next(record for record in records if record["source_index"] == index)

    def pixels(self, sha256: str) -> Images:
        return pack.decode_png((self.directory / "images" / f"{sha256}.png").read_bytes())

    def add(self, png: bytes | Images) -> str:
        data = png if isinstance(png, bytes) else pack.encode_png(png)
        sha256 = hashlib.sha256(data).hexdigest()
        (self.directory / "images" / f"{sha256}.png").write_bytes(data)
        return sha256

    def save(self) -> None:
        self.manifest["pack_sha256"] = pack.pack_sha256(self.manifest)
        text = json.dumps(self.manifest)
        (self.directory / "manifest.json").write_text(text)
        for path in (self.directory / "images").iterdir():
            if path.stem not in text:
                path.unlink()
        for name, data in self.extra.items():
            (self.directory / "images" / name).write_bytes(data)


def softmax(network: torch.nn.Module, images: Images) -> npt.NDArray[np.float64]:
    """(N, K) for images (N, H, W)."""
    with torch.no_grad():
        logits = network(torch.tensor(images[:, None] / 255, dtype=torch.float32)).numpy().astype(float)
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


def nearest_pattern(patterns: Images, seed: int) -> Network:
    """A network with random weights, but for its last layer: that finds the nearest of the patterns (K, H, W)."""
    network = Network((1, SIDE, SIDE), len(patterns))
    network.initialize(torch.Generator().manual_seed(seed))
    seen: list[torch.Tensor] = []
    hook = network.dense2.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    softmax(network, patterns)
    hook.remove()
    [features] = seen  # (K, 1024)
    scale = 10 / float((features[0] - features[1]).square().sum())
    with torch.no_grad():
        network.dense2.weight.copy_(scale * features)
        network.dense2.bias.copy_(-scale / 2 * features.square().sum(1))
    return network


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Example:
    folder = tmp_path_factory.mktemp("toy")
    rng = np.random.default_rng(5)
    patterns = rng.integers(0, 256, (len(LABELS), SIDE, SIDE), dtype=np.uint8)
    networks = [nearest_pattern(patterns, seed) for seed in range(len(MODELS))]
    labels = np.arange(PER_LABEL * len(LABELS)) % len(LABELS)

    def noisy(image: npt.NDArray[Any]) -> Images:
        return np.clip(image + rng.normal(0, 30, image.shape), 0, 255).astype(np.uint8)

    test = noisy(patterns[labels])
    images: dict[str, bytes] = {}

    def stored(pixels: Images) -> str:
        data = pack.encode_png(pixels)
        sha256 = hashlib.sha256(data).hexdigest()
        images[sha256] = data
        return sha256

    def unmodified(index: int) -> dict[str, Any]:
        return {"sha256": stored(test[index]), "source_index": index, "source_label": LABELS[labels[index]]}

    stimuli, grids = [], {}
    # No pair of image 2, the first eel, is in the pack: the grid shows it all the same.
    for model, network in zip(MODELS, networks, strict=True):
        cells = np.zeros((len(LABELS), len(LABELS), SIDE, SIDE), dtype=np.uint8)
        for index in range(2 * len(LABELS)):
            original = test[index]
            if index < len(LABELS):
                cells[labels[index], labels[index]] = original
            for target in set(range(len(LABELS))) - {labels[index]}:
                image = noisy(0.7 * patterns[target] + 0.3 * original)
                probability = softmax(network, image[None])[0, target]
                if index < len(LABELS):
                    cells[labels[index], target] = image
                if index == 2:
                    continue
                changes = [(int(a) - int(b)) / 255 for a, b in zip(image.flat, original.flat, strict=True)]
                stimuli.append(
                    {
                        "sha256": stored(image),
                        "model": model,
                        "source_index": index,
                        "source_label": LABELS[labels[index]],
                        "target_label": LABELS[target],
                        "prediction": LABELS[target],
                        "target_probability": round(float(probability), 6),
                        "iterations": 1,
                        "pixels_changed": sum(change != 0 for change in changes),
                        "l2": round(sum(change**2 for change in changes) ** 0.5, 6),
                        "linf": round(max(abs(change) for change in changes), 6),
                    }
                )
        grids[model] = stored(pack.grid_pixels(cells))

    records = []
    for model, network in zip(MODELS, networks, strict=True):
        config = {
            "model": model,
            "dataset": "toy",
            "image_shape": [1, SIDE, SIDE],
            "classes": len(LABELS),
            "seed": 0,
        }
        path = checkpoints.path_of(folder / "checkpoints", config)
        checkpoints.save(path, network, config, 1.0)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        records.append(
            {"name": model, "training": config, "clean_accuracy": 1.0, "checkpoint_sha256": sha256}
        )
    dataset = Dataset(
        "toy",
        LABELS,
        test[:0, None],
        labels[:0],
        test[:, None],
        labels,
        "made up",
        "CC0",
        {"toy.bin": "0" * 64},
    )
    manifest = {
        "name": "toy",
        "labels": list(LABELS),
        "dataset": {"name": "toy", "source": "made up", "licence": "CC0", "files": dataset.files},
        "attack": {"name": "mixing", "parameters": {"share": 0.7}},
        "seed": 0,
        "models": records,
        "stimuli": stimuli,
        "originals": [unmodified(index) for index in (0, 1, 3, 4, 5)],
        "clean": [unmodified(index) for index in (9, 10, 11)],
        "grids": grids,
    }
    pack.write(folder / "toy", manifest, images.values())
    return Example(folder / "toy", folder / "checkpoints", dataset)


@pytest.fixture
def copy(example: Example, tmp_path: Path) -> Copy:
    shutil.copytree(example.directory, tmp_path / "toy")
    return Copy(tmp_path / "toy", json.loads((tmp_path / "toy" / "manifest.json").read_text()), {})


def differences(copy: Copy, folder: Path | None = None, dataset: Dataset | None = None) -> list[str]:
    copy.save()
    nowhere = copy.directory / "nowhere"
    return verify.verify(pack.read(copy.directory), folder or nowhere, dataset).differences


def test_a_pack_that_is_right_passes(example: Example) -> None:
    verified = verify.verify(pack.read(example.directory), example.checkpoints, example.dataset)
    assert verified.differences == []
    assert verified.all_models_asked
    assert [check.count for check in verified.checks] == [
        30 + 8 + 3,  # files
        10,  # pairs
        8,  # unmodified images
        30,  # stimuli
        3 * 2 * 3,  # cells: of a grid's three rows, that of the eels shows an image without stimuli
        0,  # success rates: none is stated
        3,  # seeds
        8,  # unmodified images, in the data set
        *[10 + 8] * 3,  # answers
    ]
    assert "(rows passed over: 1)" in verified.checks[4].what
    assert verified.notes == ["attack 'mixing': not known here: not checked"]
    for model, line in zip(MODELS, verified.models, strict=True):
        assert line.startswith(
            f"{model}: re-classified 10 of 10 (checkpoint {example.checkpoints / 'toy' / model}-"
        )
        assert "read 8 of 8 unmodified images rightly; 100.00% of 12 test images" in line


@pytest.mark.parametrize(
    "folder", sorted((ROOT / "stimuli").glob("*/manifest.json")), ids=lambda p: p.parent.name
)
def test_the_bundled_packs_are_as_they_say(folder: Path, tmp_path: Path) -> None:
    verified = verify.verify(pack.read(folder.parent), tmp_path)
    assert verified.differences == []
    attacked = next(check for check in verified.checks if check.what.startswith("stimuli: as the attack"))
    assert attacked.count > 1000
    assert verified.notes == ["data set: no --data-dir given: not compared"]


def test_files_that_no_record_names_are_named(copy: Copy) -> None:
    known = copy.unmodified(9)["sha256"]
    copy.extra = {"0" * 64 + ".png": b"", "notes\n.txt": b"the answers", known: b"", f"{known}.png.png": b""}
    assert differences(copy) == [
        f"{f'images/{name}'!r}: no record of the manifest names this file" for name in sorted(copy.extra)
    ]


@pytest.mark.parametrize(
    ("key", "value"), [("pixels_changed", 1), ("l2", 0.5), ("linf", 0.25), ("l2", None), ("linf", None)]
)
def test_a_wrong_measurement_is_named(key: str, value: float | None, copy: Copy) -> None:
    record = copy.stimulus("distilled", 1, "eel")
    right = record[key]
    record[key] = right + 5e-6 if value is None else value
    shown = right if key == "pixels_changed" else f"{right:.6f}"
    assert differences(copy) == [f"distilled, source_index 1 to eel: {key} {record[key]}, measured {shown}"]


def test_another_image_in_a_stimulus_place_is_named(copy: Copy) -> None:
    record = copy.stimulus("zebra", 4, "cat")
    record["sha256"] = copy.stimulus("zebra", 3, "dog")["sha256"]
    found = differences(copy)
    assert {line.split(":")[0] for line in found} == {"zebra, source_index 4 to cat"}
    assert any(f"l2 {record['l2']}, measured" in line for line in found)


def test_an_original_among_the_stimuli_is_named(copy: Copy) -> None:
    record = copy.stimulus("zebra", 4, "cat")
    record |= {"sha256": copy.unmodified(4)["sha256"], "pixels_changed": 0, "l2": 0.0, "linf": 0.0}
    assert differences(copy) == ["zebra, source_index 4 to cat: is its original, unchanged"]


def test_a_pair_that_one_model_lacks_is_named(copy: Copy) -> None:
    copy.manifest["stimuli"].remove(copy.stimulus("distilled", 4, "cat"))
    assert differences(copy) == ["distilled, source_index 4 to cat: there is no stimulus"]


def test_originals_that_are_too_many_or_missing_are_named(copy: Copy) -> None:
    copy.manifest["stimuli"] = [s for s in copy.manifest["stimuli"] if s["source_index"] != 4]
    assert differences(copy) == ["source_index 4: is an original of no stimulus"]
    copy.manifest["originals"] = [o for o in copy.manifest["originals"] if o["source_index"] not in (4, 3)]
    assert differences(copy) == ["source_index 3: has no original"]


def test_labels_that_do_not_agree_are_named(copy: Copy) -> None:
    copy.stimulus("undefended", 3, "dog")["source_label"] = "eel"
    assert differences(copy) == ["undefended, source_index 3 to dog: source_label eel, elsewhere cat"]


def test_an_unmodified_image_that_comes_twice_is_named(copy: Copy) -> None:
    copy.unmodified(11)["sha256"] = copy.unmodified(9)["sha256"]
    assert differences(copy) == ["source_index 11 unmodified: is the same image as source_index 9"]


def test_a_clean_image_that_is_a_source_is_named(copy: Copy) -> None:
    original = copy.unmodified(4)
    copy.manifest["originals"].remove(original)
    copy.manifest["clean"].append(original)
    assert differences(copy) == [
        "source_index 4: has no original",
        "source_index 4 unmodified: is clean, but the source of a stimulus",
    ]


def test_without_originals_what_can_be_checked_is(copy: Copy, example: Example) -> None:
    del copy.manifest["originals"]
    copy.save()
    verified = verify.verify(pack.read(copy.directory), example.checkpoints)
    assert verified.differences == []
    assert [(check.what, check.count) for check in verified.checks[3:5]] == [
        ("stimuli: pixels_changed, l2, linf from the original (30 without one)", 0),
        ("cells of 3 grids: as the images they show (rows passed over: 3)", 0),
    ]


def cell(row: int, column: int) -> tuple[slice, slice]:
    top, left = (1 + n * (SIDE + 1) for n in (row, column))
    return slice(top, top + SIDE), slice(left, left + SIDE)


@pytest.mark.parametrize(
    ("place", "complaint"),
    [
        (cell(0, 1), ", row cat: the cell of dog is not the stimulus"),
        (cell(1, 2), ", row dog: the cell of eel is not the stimulus"),
        (cell(2, 2), ", row eel: the diagonal is not the original"),  # not as in the other grids
        (cell(0, 0), ", row cat: the diagonal is not the original"),
        (cell(2, 0), None),  # the row of an image without stimuli
        (np.s_[9:10, :], ": the lines between its cells are not as they should be"),
    ],
)
def test_a_grid_that_shows_something_else_is_named(
    place: tuple[slice, slice], complaint: str | None, copy: Copy
) -> None:
    grid = copy.pixels(copy.manifest["grids"]["zebra"])
    grid[place][0, 0] ^= 1
    copy.manifest["grids"]["zebra"] = copy.add(grid)
    assert differences(copy) == ([f"grid of zebra{complaint}"] if complaint else [])


def test_a_grid_with_the_wrong_original_is_named(copy: Copy) -> None:
    grid = copy.pixels(copy.manifest["grids"]["undefended"])
    grid[cell(1, 1)] = copy.pixels(copy.unmodified(4)["sha256"])
    copy.manifest["grids"]["undefended"] = copy.add(grid)
    assert differences(copy) == ["grid of undefended, row dog: the diagonal is not the original"]


def test_grids_with_an_image_of_the_pack_where_another_belongs_are_named(copy: Copy) -> None:
    """No grid shows the original then; yet a row without stimuli would show an image that is not in the pack."""
    for model, sha256 in copy.manifest["grids"].items():
        grid = copy.pixels(sha256)
        grid[cell(1, 1)] = copy.pixels(copy.unmodified(10)["sha256"])
        copy.manifest["grids"][model] = copy.add(grid)
    found = [f"grid of {model}, row dog: the diagonal is not the original" for model in MODELS]
    assert differences(copy) == found


def test_a_grid_of_another_model_is_named(copy: Copy) -> None:
    grids = copy.manifest["grids"]
    grids["zebra"] = grids["distilled"]
    found = differences(copy)
    assert len(found) == 4
    assert all(line.startswith("grid of zebra, row ") for line in found)


@pytest.mark.parametrize("size", [(28, 27), (1, 1), (31, 31)])
def test_a_grid_of_the_wrong_size_is_named(size: tuple[int, int], copy: Copy) -> None:
    copy.manifest["grids"]["zebra"] = copy.add(np.full(size, 96, dtype=np.uint8))
    [line] = differences(copy)
    if size == (31, 31):
        assert line == "grid of zebra: cells 9 x 9, images 8 x 8 pixels"
    else:
        assert line.startswith(f"grid of zebra: {size[1]} x {size[0]} pixels are no grid of 3 x 3 cells")


def test_images_that_are_not_the_data_set_s_are_named(copy: Copy, example: Example) -> None:
    copy.unmodified(9)["source_index"] = 6
    copy.unmodified(10)["source_index"] = 12
    copy.unmodified(11)["source_label"] = "cat"
    assert differences(copy, dataset=example.dataset) == [
        "source_index 6 unmodified: is not the data set's test image of this index",
        "source_index 12 unmodified: there are only 12 test images",
        "source_index 11 unmodified: source_label cat, in the data set eel",
    ]


def test_another_data_set_is_named(copy: Copy, example: Example) -> None:
    other = replace(
        example.dataset, labels=("cat", "dog", "owl"), files={"toy.bin": "1" * 64, "more.bin": "2"}
    )
    assert differences(copy, dataset=other)[:3] == [
        "labels cat, dog, eel, in the data set cat, dog, owl",
        "data set's file 'more.bin': sha256 None in the manifest, '2' here",
        f"data set's file 'toy.bin': sha256 '{'0' * 64}' in the manifest, '{'1' * 64}' here",
    ]


@pytest.mark.parametrize(
    ("key", "stated", "complaint"),
    [
        ("source", "somebody else", "source: 'somebody else' in the manifest, 'made up' here"),
        ("source", None, "source: '' in the manifest, 'made up' here"),
        ("licence", "public domain", "licence: 'public domain' in the manifest, 'CC0' here"),
        ("licence", ["CC0"], "licence: ['CC0'] in the manifest, 'CC0' here"),
        ("note", "A part of it.", "note: 'A part of it.' in the manifest, '' here"),
    ],
)
def test_what_is_said_of_the_data_set_must_be_so(
    key: str, stated: object, complaint: str, copy: Copy, example: Example
) -> None:
    copy.manifest["dataset"][key] = stated
    if stated is None:
        del copy.manifest["dataset"][key]
    assert differences(copy, dataset=example.dataset) == [f"data set's {complaint}"]


def test_a_data_set_that_is_a_part_must_be_called_one(copy: Copy, example: Example) -> None:
    part = replace(example.dataset, note="A part of it.")
    [line] = differences(copy, dataset=part)
    assert line == "data set's note: '' in the manifest, 'A part of it.' here"
    copy.manifest["dataset"]["note"] = "A part of it."
    assert differences(copy, dataset=part) == []


@pytest.mark.parametrize("seed", [7, None, False, "0"])
def test_another_seed_than_that_of_the_trainings_is_named(seed: object, copy: Copy) -> None:
    copy.manifest["seed"] = seed
    assert differences(copy) == [f"{m}: was trained with seed 0, the pack's is {seed!r}" for m in MODELS]


def test_a_seed_without_trained_models_is_not_compared(copy: Copy, example: Example) -> None:
    for record in copy.manifest["models"]:
        record["training"] = {"own": "my_models:make", "weights": None}
    copy.manifest["seed"] = 7
    assert differences(copy) == []
    copy.manifest["models"][0]["training"] = ["?"]
    assert differences(copy) == []


def test_a_wrong_probability_is_named_and_rounding_is_not(copy: Copy, example: Example) -> None:
    wrong, rounded = copy.stimulus("zebra", 0, "eel"), copy.stimulus("zebra", 0, "dog")
    right = wrong["target_probability"]
    wrong["target_probability"] -= 0.0015
    rounded["target_probability"] -= 0.0005
    [line] = differences(copy, example.checkpoints)
    start, measured = line.split(", re-classified ")
    assert start == f"zebra, source_index 0 to eel: target_probability {wrong['target_probability']}"
    assert float(measured) == pytest.approx(right, abs=1e-5)


def test_a_stimulus_that_does_not_fool_its_model_is_named(copy: Copy, example: Example) -> None:
    """All its numbers are right; only the model can tell."""
    record, original = copy.stimulus("distilled", 4, "cat"), copy.pixels(copy.unmodified(4)["sha256"])
    pixels = original.copy()
    pixels[0, 0] ^= 1
    network = checkpoints.load(next(example.checkpoints.rglob("distilled-*"))).network
    probability = float(softmax(network, pixels[None])[0, 0])
    distance = {"pixels_changed": 1, "l2": round(1 / 255, 6), "linf": round(1 / 255, 6)}
    record |= {"sha256": copy.add(pixels), "target_probability": 0.5, **distance}
    assert differences(copy) == []
    assert differences(copy, example.checkpoints) == [
        "distilled, source_index 4 to cat: re-classified as dog",
        f"distilled, source_index 4 to cat: target_probability 0.5, re-classified {probability:.6f}",
    ]
    record["target_probability"] = round(probability, 6)
    [line] = differences(copy)
    assert line.endswith(f"target_probability {probability:.6f} is not the largest of 3")


def test_an_unmodified_image_that_is_misread_is_named(copy: Copy, example: Example) -> None:
    copy.unmodified(9)["source_label"] = "dog"
    assert differences(copy) == []
    assert differences(copy, example.checkpoints) == [
        f"source_index 9 unmodified: {model} reads it as cat" for model in MODELS
    ]


def test_a_checkpoint_of_another_model_is_named(copy: Copy, example: Example) -> None:
    undefended, distilled, _ = copy.manifest["models"]
    undefended["checkpoint_sha256"] = distilled["checkpoint_sha256"]
    found = differences(copy, example.checkpoints)
    assert found[0] == "undefended: its checkpoint_sha256 is that of a checkpoint of 'distilled'"
    assert all(line.startswith(("undefended", "source_index")) for line in found)


def test_what_a_checkpoint_says_of_itself_must_be_in_the_manifest(copy: Copy, example: Example) -> None:
    _, distilled, zebra = copy.manifest["models"]
    distilled["training"]["classes"] = 7
    zebra["clean_accuracy"] = 0.99
    assert differences(copy, example.checkpoints) == [
        "distilled: its training is not the configuration in its checkpoint",
        "zebra: clean_accuracy 0.99, in its checkpoint 1.0",
    ]
    zebra["clean_accuracy"] = True  # which to Python is 1.0
    assert differences(copy, example.checkpoints)[1:] == ["zebra: clean_accuracy True, in its checkpoint 1.0"]
    copy.manifest["dataset"] = ["toy"]
    assert differences(copy, example.checkpoints)[1:3] == [
        "distilled: its training is not the configuration in its checkpoint",
        "distilled: its checkpoint was trained on the data set 'toy'",
    ]


def test_a_clean_accuracy_that_is_not_so_is_named(copy: Copy, example: Example) -> None:
    """One in twelve test images is of another label than the networks see."""
    labels = example.dataset.test_labels.copy()
    labels[6] = 2
    found = differences(copy, example.checkpoints, replace(example.dataset, test_labels=labels))
    assert found == [
        f"{model}: clean_accuracy 1.000000 in its checkpoint, measured 0.916667" for model in MODELS
    ]


def test_a_network_for_other_images_is_named(copy: Copy, tmp_path: Path) -> None:
    config = {"model": "zebra", "dataset": "toy", "image_shape": [1, 12, 8], "classes": 3}
    path = checkpoints.path_of(tmp_path, config)
    checkpoints.save(path, checkpoints.fresh_network(config), config, 1.0)
    copy.manifest["models"][2] |= {
        "checkpoint_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "training": config,
    }
    assert differences(copy, tmp_path) == ["zebra: its checkpoint is for images (1, 12, 8) with 3 labels"]


def test_models_without_a_checkpoint_here_are_said_not_to_be_asked(copy: Copy, example: Example) -> None:
    """A researcher's own model has weights that are no checkpoint, or none."""
    weights = copy.directory.parent / "weights.safetensors"
    weights.write_bytes(b"mine")
    undefended, distilled, zebra = copy.manifest["models"]
    undefended["checkpoint_sha256"] = hashlib.sha256(b"mine").hexdigest()
    del distilled["checkpoint_sha256"]
    zebra["checkpoint_sha256"] = ["?"]
    copy.save()
    verified = verify.verify(pack.read(copy.directory), copy.directory.parent)
    assert verified.differences == []
    assert not verified.all_models_asked
    own, *others = verified.models
    assert own.startswith(f"undefended: {weights}: not a readable checkpoint")
    assert others == [f"{model}: checkpoint not here: not re-classified" for model in MODELS[1:]]


@pytest.mark.parametrize("stated", [None, ["jsma"], {}, {"name": ["jsma"]}, {"name": "mixing"}])
def test_an_attack_that_is_not_known_here_is_said_not_to_be_checked(stated: object, copy: Copy) -> None:
    copy.manifest["attack"] = stated
    copy.save()
    verified = verify.verify(pack.read(copy.directory), copy.directory / "nowhere")
    name = stated.get("name") if isinstance(stated, dict) else None
    assert verified.differences == []
    assert verified.notes[1:] == [f"attack {name!r}: not known here: not checked"]


def test_a_pack_that_names_an_attack_that_did_not_make_it_is_named(copy: Copy) -> None:
    copy.manifest["attack"] = {"name": "jsma", "parameters": ATTACKS["jsma"][1]}
    found = differences(copy)
    assert sum("otherwise than by theta" in line for line in found) == 30
    copy.manifest["attack"] = {"name": "tgsm", "parameters": ATTACKS["tgsm"][1]}
    assert sum("iterations 1, of which the attack makes 10" in line for line in differences(copy)) == 30


def test_an_attack_added_without_what_it_can_make_is_said_not_to_be_checked(
    copy: Copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ATTACKS, "mixing", (lambda: None, {"share": 0.7}))
    copy.save()
    verified = verify.verify(pack.read(copy.directory), copy.directory / "nowhere")
    assert verified.notes[1:] == ["attack mixing: what it can make is not known here: not checked"]


def test_the_command_says_that_all_is_right(example: Example, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["verify", str(example.directory), "--checkpoints", str(example.checkpoints)]
    assert verify.main(arguments) == 0
    out = capsys.readouterr().out
    assert "\ndata set: no --data-dir given: not compared\nattack 'mixing': not known here" in out
    assert out.endswith("\n\nEverything that could be checked here is as the pack says.\n")
    assert "zebra: re-classified 10 of 10 (checkpoint " in out


def test_the_command_shows_twenty_differences_and_counts_the_others(
    copy: Copy, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for record in copy.manifest["stimuli"][:21]:
        record["l2"] += 1
    copy.save()
    monkeypatch.chdir(copy.directory.parent)  # where there are no checkpoints
    assert verify.main(["verify", str(copy.directory)]) == 1
    out = capsys.readouterr().out
    table, shown = out.split("21 differences:\n")
    assert "undefended: checkpoint not here: not re-classified" in table
    assert len(shown.splitlines()) == 21
    assert shown.endswith("  and 1 more\n")


def test_the_command_refuses_what_it_cannot_read(
    copy: Copy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy.save()
    for arguments, complaint in (
        ([str(tmp_path / "nowhere")], "nowhere: there is no such folder"),
        ([str(copy.directory), "--checkpoints", str(tmp_path / "no")], "no: no such folder of checkpoints"),
        ([str(copy.directory), "--data-dir", str(tmp_path)], "there is no data set 'toy'"),
    ):
        assert verify.main(["verify", *arguments]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("error: ")
        assert complaint in captured.err
        assert captured.err.count("\n") == 1


def test_without_pytorch_the_images_are_still_measured(copy: Copy) -> None:
    copy.stimulus("zebra", 0, "eel")["l2"] = 0
    copy.save()
    code = "import sys; sys.modules['torch'] = None; from ml.verify import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "verify", str(copy.directory)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1, done.stderr
    assert "zebra: torch is not installed: not re-classified" in done.stdout
    assert "attack: torch is not installed: not checked" in done.stdout
    assert "1 difference:\n  zebra, source_index 0 to eel: l2 0.0, measured" in done.stdout


def test_python_m_ml_pack_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "ml.pack"], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    assert "verify" in done.stdout
    command = [sys.executable, "-m", "ml.pack", "verify", "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr == "error: nowhere: there is no such folder\n"
