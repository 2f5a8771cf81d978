"""A made-up evaluation of the laboratory's, as `python -m ml.evaluate` leaves one in its folder."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from ml.pack import Pack


def report_about(checkpoints: Mapping[str, str]) -> dict[str, Any]:
    """A report.json about networks with these checkpoints, and one network more, as the laboratory has five."""
    others = {"double_backprop": "d" * 64}
    return {
        "dataset": {"name": "test", "note": "A part of it, not the full set.", "test_images": 512},
        "schedule": {"epochs": 4, "words": "4 epochs of 256 images"},
        "seed": 0,
        "versions": {"torch": "2.13.0"},
        "command": "python -m ml.evaluate --dataset test",
        "seconds": 90.0,
        "models": {
            name: {"clean_accuracy": 0.5, "checkpoint_sha256": sha256, "config": {}}
            for name, sha256 in {**checkpoints, **others}.items()
        },
        "clean_accuracy": {},
        "transfer": {},
        "claims": [
            {
                "id": "resist",
                "title": "Regularized networks resist best",
                "claim": "At high epsilon they keep most of their accuracy <on others' examples>.",
                "verdict": "holds",
                "numbers": ["0.80 against 0.11", 0.3],
                "figures": ["curves.png"],
            },
            {
                "id": "cost",
                "title": "Cost",
                "claim": "Nearly three times.",
                "verdict": "undecided",
                "numbers": [],
            },
        ],
        "figures": [
            {
                "file": "curves.png",
                "title": "Accuracy over epsilon",
                "caption": "Each network on all examples.",
            },
            {"file": "grid.png", "title": "A small grid", "caption": ""},
        ],
    }


def write_evaluation(results: Path, pack: Pack, name: str = "test", **changes: Any) -> Path:
    """The folder `name` in `results`, about the networks of `pack`; `changes` replace parts of its report."""
    checkpoints = {m["name"]: m["checkpoint_sha256"] for m in pack.manifest["models"]}
    folder = results / name
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(report_about(checkpoints) | changes))
    (folder / "report.html").write_text("<!doctype html><title>The report</title><style>p {}</style>")
    (folder / "curves.png").write_bytes(png(1400, 500))
    (folder / "grid.png").write_bytes(png(291, 291))
    return folder


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).save(buffer, format="PNG")
    return buffer.getvalue()
