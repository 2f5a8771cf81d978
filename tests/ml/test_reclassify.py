"""Which stimuli an attack could have made: those that it did make, and none of those that were changed since."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from ml import pack, reclassify
from ml.attacks import ATTACKS
from ml.models import Network

LABELS = ("cat", "dog", "eel")
SIDE = 8

Images = npt.NDArray[np.uint8]


@dataclass
class Attacked:
    """Stimuli that an attack really made, with what a pack says of them: 8 images, all towards the last label."""

    directory: Path
    manifest: dict[str, Any]
    pixels: dict[str, Images]

    def found(self) -> reclassify.Possible:
        records = [pack.Stimulus(**record) for record in self.manifest["stimuli"]]
        originals = tuple(pack.CleanImage(**record) for record in self.manifest["originals"])
        read = pack.Pack(
            "toy", LABELS, ("zebra",), "", self.manifest, tuple(records), {}, originals, (), self.directory
        )
        return reclassify.possible(read, self.pixels)

    def change(self, row: int, place: tuple[int, int], value: int) -> None:
        self.pixels[f"s{row}"][place] = value

    def place(self, row: int, where: Callable[[Images, Images], npt.NDArray[np.bool_]]) -> tuple[int, int]:
        """The first pixel of which something holds of the stimulus and its original."""
        y, x = np.argwhere(where(self.pixels[f"s{row}"], self.pixels[f"o{row}"]))[0]
        return int(y), int(x)


def attacked(attack: str, tmp_path: Path, normalized: bool = False, **parameters: object) -> Attacked:
    network = Network((1, SIDE, SIDE), len(LABELS), contrast_normalized=normalized)
    network.initialize(torch.Generator().manual_seed(1))
    with torch.no_grad():
        network.norm1.bias.fill_(0.1)  # so that an image without contrast has a gradient
    rng = np.random.default_rng(3)
    # Of any contrast, from none to clipped at both ends.
    originals = 128 + np.arange(8)[:, None, None] * rng.normal(0, 25, (8, SIDE, SIDE))
    originals = originals.clip(0, 255).astype(np.uint8)
    x = torch.tensor(originals[:, None] / 255, dtype=torch.float32)
    function, usual = ATTACKS[attack]
    units = {"units": network.units(x)} if attack == "tgsm" else {}
    result = function(network, x, torch.full((8,), 2), **{**usual, **parameters}, **units)
    images = np.rint(result.images[:, 0].numpy() * 255).astype(np.uint8)
    assert (images != originals).any((1, 2)).sum() >= 4
    stimuli = [
        {
            "sha256": f"s{row}",
            "model": "zebra",
            "source_index": row,
            "source_label": "cat",
            "target_label": "eel",
            "prediction": "eel",
            "target_probability": 1.0,
            "iterations": int(result.iterations[row]),
            "pixels_changed": 0,
            "l2": 0.0,
            "linf": 0.0,
        }
        for row in range(8)
    ]
    manifest = {
        "attack": {"name": attack, "parameters": {**usual, **parameters}},
        "models": [{"name": "zebra", "training": {"contrast_normalized": True} if normalized else {}}],
        "stimuli": stimuli,
        "originals": [{"sha256": f"o{row}", "source_index": row, "source_label": "cat"} for row in range(8)],
    }
    pixels = {f"s{row}": images[row] for row in range(8)} | {f"o{row}": originals[row] for row in range(8)}
    return Attacked(tmp_path, manifest, pixels)


@pytest.mark.parametrize(
    ("attack", "normalized", "parameters"),
    [
        ("jsma", False, {}),
        ("jsma", True, {}),
        ("jsma", False, {"theta": -1.0}),
        ("jsma", False, {"theta": 0.3, "gamma": 0.5}),
        ("tgsm", False, {}),
        ("tgsm", True, {}),
        ("tgsm", False, {"steps": 3, "epsilon": 0.03}),
        ("tgsm", True, {"steps": 1, "epsilon": 0.7}),
        ("tgsm", True, {"steps": 1, "epsilon": 500.0}),  # of an image without contrast, where that is 0.05
    ],
)
def test_what_an_attack_made_is_possible(
    attack: str, normalized: bool, parameters: dict[str, float], tmp_path: Path
) -> None:
    found = attacked(attack, tmp_path, normalized, **parameters).found()
    assert (found.count, found.differences) == (8, [])
    stated = ATTACKS[attack][1] | parameters
    note = f"attack {attack}: parameters {stated!r}, here {ATTACKS[attack][1]!r}: checked with the pack's"
    assert found.notes == ([note] if parameters else [])


def test_pixels_that_jsma_cannot_have_changed_so_are_named(tmp_path: Path) -> None:
    made = attacked("jsma", tmp_path)
    row = max(range(8), key=lambda row: made.manifest["stimuli"][row]["iterations"])
    steps = made.manifest["stimuli"][row]["iterations"]
    who = f"zebra, source_index {row} to eel"
    made.change(row, made.place(row, lambda image, original: image != original), 254)
    assert made.found().differences == [f"{who}: 1 of its pixels changed otherwise than by theta 1.0"]
    made = attacked("jsma", tmp_path)
    made.change(row, made.place(row, lambda image, original: (image == original) & (image < 255)), 255)
    changes = f"iterations {steps} of two pixels each, for {2 * steps + 1} changes of pixels"
    assert made.found().differences == [f"{who}: {changes}"]
    made = attacked("jsma", tmp_path)
    made.change(row, made.place(row, lambda image, original: (image == original) & (image > 0)), 0)
    assert made.found().differences == [f"{who}: 1 of its pixels changed otherwise than by theta 1.0"]


@pytest.mark.parametrize("more", [1, -1])
def test_iterations_that_jsma_cannot_have_made_are_named(more: int, tmp_path: Path) -> None:
    made = attacked("jsma", tmp_path)
    row = next(row for row in range(8) if 0 < made.manifest["stimuli"][row]["iterations"] < 8)
    record = made.manifest["stimuli"][row]
    right = record["iterations"]
    record["iterations"] += more
    assert made.found().differences == [
        f"zebra, source_index {row} to eel: iterations {right + more} of two pixels each, "
        f"for {2 * right} changes of pixels"
    ]


def test_more_pixels_than_gamma_allows_are_named(tmp_path: Path) -> None:
    made = attacked("jsma", tmp_path, gamma=1.0)
    made.manifest["attack"]["parameters"]["gamma"] = 0.02  # one pixel in 64, not two
    changed = [row for row in range(8) if made.manifest["stimuli"][row]["iterations"]]
    assert made.found().differences == [
        f"zebra, source_index {row} to eel: iterations {made.manifest['stimuli'][row]['iterations']}, "
        "of which gamma 0.02 of the pixels allows 0"
        for row in changed
    ]


@pytest.mark.parametrize("normalized", [False, True])
def test_pixels_that_tgsm_cannot_reach_are_named(normalized: bool, tmp_path: Path) -> None:
    made = attacked("tgsm", tmp_path, normalized, steps=2)
    original = made.pixels["o3"]
    unit = float(np.std(original / 255, ddof=1)) if normalized else 1.0
    steps = 2 * 25.5 * unit
    place = made.place(3, lambda image, original: (original > 60) & (original < 150))
    made.change(3, place, int(np.floor(original[place] + steps + 0.5)))
    possible = made.found().differences
    made.change(3, place, int(np.floor(original[place] + steps + 0.5)) + 1)
    [line] = made.found().differences
    assert possible == []
    measured, allowed = line.removeprefix("zebra, source_index 3 to eel: linf ").split(", in 2 steps of ")
    farthest = np.floor(original[place] + steps + 1.5) - original[place]
    assert float(measured) == pytest.approx(farthest / 255, abs=1e-6)
    assert float(allowed) == pytest.approx(0.1 * unit, abs=1e-6)


def test_steps_of_another_epsilon_are_named(tmp_path: Path) -> None:
    made = attacked("tgsm", tmp_path, steps=2)
    made.manifest["attack"]["parameters"]["epsilon"] = 0.17
    found = made.found().differences
    assert len(found) == 8
    assert all(
        line.endswith(" of its pixels changed by no whole number of steps of 0.170000") for line in found
    )


def test_iterations_that_are_not_tgsm_s_are_named(tmp_path: Path) -> None:
    made = attacked("tgsm", tmp_path)
    made.manifest["stimuli"][5]["iterations"] = 9
    assert made.found().differences == [
        "zebra, source_index 5 to eel: iterations 9, of which the attack makes 10"
    ]


def test_a_model_s_contrast_counts_for_what_tgsm_can_reach(tmp_path: Path) -> None:
    """The units of a contrast-normalized model are those of the network itself, also where there is no contrast."""
    made = attacked("tgsm", tmp_path, normalized=True)
    assert len(np.unique(made.pixels["o0"])) == 1
    made.manifest["models"][0]["training"] = {}
    assert len(made.found().differences) >= 6
    made = attacked("tgsm", tmp_path)
    made.manifest["models"][0]["training"] = {"contrast_normalized": True}
    assert len(made.found().differences) == 8


@pytest.mark.parametrize(
    ("attack", "parameters", "complaint"),
    [
        ("jsma", {"theta": 1.0}, "gamma None is not a number from 0 to 1"),
        ("jsma", {"theta": 2, "gamma": 0.25}, "theta 2 is not a number from -1 to 1"),
        ("jsma", {"theta": 0.0, "gamma": 0.25}, "theta 0.0 changes nothing"),
        ("jsma", ["theta"], "theta None is not a number from -1 to 1"),
        ("tgsm", {"steps": "10", "epsilon": 0.1}, "steps '10' is not a number from 0 to 2,147,483,647"),
        ("tgsm", {"steps": 10, "epsilon": True}, "epsilon True is not a number from 0 to 1,000,000.0"),
        (
            "tgsm",
            {"steps": 10, "epsilon": 10**400},
            f"epsilon 1{'0' * 400} is not a number from 0 to 1,000,000.0",
        ),
        ("tgsm", None, "steps None is not a number from 0 to 2,147,483,647"),
    ],
)
def test_parameters_that_are_none_are_named(
    attack: str, parameters: object, complaint: str, tmp_path: Path
) -> None:
    made = attacked(attack, tmp_path)
    made.manifest["attack"]["parameters"] = parameters
    assert made.found().differences == [f"attack {attack}: {complaint}"]


@pytest.mark.parametrize("parameters", [{"steps": 10, "epsilon": 1e-300}, {"steps": 10, "epsilon": 0}])
def test_an_epsilon_too_small_for_the_changes_is_named(parameters: dict[str, float], tmp_path: Path) -> None:
    made = attacked("tgsm", tmp_path)
    made.manifest["attack"]["parameters"] = parameters
    assert len(made.found().differences) == 8


def test_stimuli_without_originals_are_said_not_to_be_compared_with_their_attack(tmp_path: Path) -> None:
    made = attacked("jsma", tmp_path)
    del made.manifest["originals"][2:]
    found = made.found()
    assert (found.count, found.differences) == (2, [])
    assert found.notes == ["attack jsma: not checked for 6 stimuli without their original"]
