"""A small stimulus pack that needs no network: seven-segment digits with seeded noise."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ml import pack
from ml.pack import Pack

MODELS = ("undefended", "distilled", "gradient_regularized")
SEGMENTS = ("abcdef", "bc", "abged", "abgcd", "fgbc", "afgcd", "afgedc", "abc", "abcdefg", "abcfgd")
BARS = {
    "a": (4, 7, 8, 20),
    "d": (21, 24, 8, 20),
    "g": (12, 15, 8, 20),
    "b": (4, 14, 18, 21),
    "c": (13, 24, 18, 21),
    "f": (4, 14, 7, 10),
    "e": (13, 24, 7, 10),
}


def make_pack(
    directory: Path,
    name: str = "test-pack",
    labels: Sequence[str] = tuple("0123456789"),
    models: Sequence[str] = MODELS,
    sources: int = 3,
    targets: int = 3,
    clean: int = 4,
    seed: int = 0,
    size: int = 28,
    noise: int = 40,
) -> Pack:
    """Write a pack with `sources` images of each label, each driven to `targets` other labels by every model.

    Images are `size` x `size` pixels, 28 at the least; their background has so many levels of `noise`.
    """
    rng = np.random.default_rng(seed)
    pngs: dict[str, bytes] = {}

    def store(pixels: npt.NDArray[np.uint8]) -> str:
        png = pack.encode_png(pixels)
        sha256 = hashlib.sha256(png).hexdigest()
        pngs[sha256] = png
        return sha256

    def digit(i: int) -> npt.NDArray[np.uint8]:
        pixels = rng.integers(0, noise, (size, size), dtype=np.uint8)
        for segment in SEGMENTS[i % 10]:
            top, bottom, left, right = BARS[segment]
            pixels[top:bottom, left:right] = 230
        return pixels

    stimuli: list[dict[str, Any]] = []
    originals: list[dict[str, Any]] = []
    # By model, the first source of each label and what it was driven to; black where it was driven to nothing.
    cells = {model: np.zeros((len(labels), len(labels), size, size), dtype=np.uint8) for model in models}
    for i, label in enumerate(labels):
        for source in range(sources):
            index, original = i * 100 + source, digit(i)
            for grid in cells.values():
                if source == 0:
                    grid[i, i] = original
            originals.append({"sha256": store(original), "source_index": index, "source_label": label})
            for step in range(1, targets + 1):
                target = labels[(i + step) % len(labels)]
                for model in models:
                    changed = original.copy()
                    changed.flat[rng.choice(changed.size, 40, replace=False)] = 255
                    change = (changed / 255 - original / 255).ravel()
                    if source == 0:
                        cells[model][i, (i + step) % len(labels)] = changed
                    stimuli.append(
                        {
                            "sha256": store(changed),
                            "model": model,
                            "source_index": index,
                            "source_label": label,
                            "target_label": target,
                            "prediction": target,
                            "target_probability": 0.9,
                            "iterations": 20,
                            "pixels_changed": 40,
                            "l2": round(sum(change**2) ** 0.5, 6),
                            "linf": round(max(abs(change)), 6),
                        }
                    )
    extra = [
        {"sha256": store(digit(i)), "source_index": 5000 + i, "source_label": labels[i % len(labels)]}
        for i in range(clean)
    ]
    grids = {model: store(pack.grid_pixels(grid)) for model, grid in cells.items()}
    manifest: dict[str, Any] = {
        "name": name,
        "labels": list(labels),
        "dataset": {"name": "test", "source": "made by the test", "licence": "MIT", "files": {}},
        "attack": {"name": "none"},
        "models": [
            {"name": model, "clean_accuracy": 1.0, "checkpoint_sha256": checkpoint_sha256(name, model)}
            for model in models
        ],
        "seed": seed,
        "versions": {},
        "grids": grids,
        "stimuli": stimuli,
        "originals": originals,
        "clean": extra,
    }
    return pack.write(directory, manifest, pngs.values())


def checkpoint_sha256(pack: str, model: str) -> str:
    """The hash that a pack of `make_pack` gives for the checkpoint of a model; there is no such file."""
    return hashlib.sha256(f"{pack}/{model}".encode()).hexdigest()
