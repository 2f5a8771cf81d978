"""`report.json`, the figures and one page that needs nothing but itself: written whole, or not at all."""

import base64
import json
import string
from collections import Counter
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2

from ml.captions import CAPTIONS
from ml.defenses import DEFENSES
from ml.evidence import NAMES
from ml.folders import replaced
from ml.verdicts import shown, shown_interval

FORMAT = "evaluation/1"
TEMPLATES = Path(__file__).resolve().parents[1] / "templates"

SECTIONS = {
    "1": "Accuracy under attack",
    "2": "Vanishing and exploding gradients of the distilled model",
    "3": "Distributions of gradients and predictions",
    "4": "JSMA examples",
    "5": "Input gradients",
    "6": "Iterated TGSM examples",
    "7": "Cost of training",
    "8": "The paper’s combinations",
    "9": "The published numbers",
}
TITLES = {"mnist": "MNIST", "svhn": "SVHN", "notmnist": "notMNIST"}
READS_WELL = 0.7  # clean accuracy; below, a banner says that verdicts mean little
MARKS = {"holds": "✓", "does not hold": "✗", "undecided": "?"}


def replaceable(folder: Path) -> bool:
    """Whether `write` may replace this folder: it is empty or holds a report of this format."""
    if not folder.is_dir():
        return False
    if not any(folder.iterdir()):
        return True
    return _read(folder).get("format") == FORMAT


def write(folder: Path, report: Mapping[str, Any], figures: Mapping[str, bytes]) -> None:
    """Writes the report's folder: all of it, or nothing.

    `report` is JSON with its claims and, for each of `figures` (PNGs by file name), a record; "format" is added
    here. What was there is replaced; what else lies in the folder, which no report names, is kept. The caller has
    asked `replaceable`. Raises OSError.
    """
    complete = {**report, "format": FORMAT}
    with replaced(folder, _files) as fresh:
        for name, data in figures.items():
            (fresh / name).write_bytes(data)
        text = json.dumps(complete, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
        (fresh / "report.json").write_text(text + "\n", encoding="utf-8")
        (fresh / "report.html").write_text(page(complete, figures), encoding="utf-8")


def _files(folder: Path) -> list[str]:
    """What is the report's of an old folder."""
    return ["report.json", "report.html", *(figure["file"] for figure in _read(folder).get("figures", []))]


def page(report: Mapping[str, Any], figures: Mapping[str, bytes]) -> str:
    """The report as HTML: figures inside it, no script, no request to anywhere."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    records = {record["file"]: record for record in report["figures"]}
    numbers = {file: number for number, file in enumerate(records, 1)}
    sections = [
        {
            "title": SECTIONS[section],
            "claims": list(claims),
            "figures": [
                f"{name}.png"
                for name, caption in CAPTIONS.items()
                if caption.section == section and f"{name}.png" in records
            ],
        }
        for section, claims in groupby(report["claims"], key=_section)
    ]
    return environment.get_template("evaluation.html").render(
        report=report,
        sections=sections,
        records=records,
        numbers=numbers,
        images={name: base64.b64encode(data).decode() for name, data in figures.items()},
        names=NAMES,
        models=[name for name in NAMES if name in report["models"]],
        marks=MARKS,
        shown=shown,
        shown_interval=shown_interval,
        other_penalties=_other_penalties(report),
        title=TITLES.get(report["dataset"]["name"], report["dataset"]["name"]),
        hardly_reading=[
            NAMES[name] for name, model in report["models"].items() if model["clean_accuracy"] < READS_WELL
        ],
        counts=Counter(claim["verdict"] for claim in report["claims"]),
        open_because=_open_because,
        open_counts=Counter(_open_because(claim) for claim in report["claims"]),
    )


def figure_records(figures: Mapping[str, bytes]) -> list[dict[str, str]]:
    """What report.json says of each figure, in the page's order."""
    return [
        {
            "file": f"{name}.png",
            "title": caption.title,
            "caption": caption.shows,
            "published": caption.published,
        }
        for name, caption in CAPTIONS.items()
        if f"{name}.png" in figures
    ]


def _read(folder: Path) -> dict[str, Any]:
    try:
        report = json.loads((folder / "report.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return report if isinstance(report, dict) else {}


def _open_because(claim: Mapping[str, Any]) -> str:
    """Why a claim is undecided; empty where it is not."""
    if claim["verdict"] != "undecided":
        return ""
    if any(number["verdict"] == "undecided" for number in claim["numbers"]):
        return "an interval leaves it open"
    return "people decide" if claim["numbers"] else "not measured"


def _other_penalties(report: Mapping[str, Any]) -> list[str]:
    """One sentence for each model whose gradient penalty is not the paper's, on a data set of the paper."""
    sentences: list[str] = []
    if report["dataset"]["name"] not in TITLES:
        return sentences
    for name, model in report["models"].items():
        penalty = model["config"]["settings"].get("penalty")
        published = DEFENSES[name].settings_for(report["dataset"]["name"]).get("penalty")
        if penalty != published:
            sentences.append(f"{NAMES[name]}: {penalty:g} in place of the paper’s {published:g}")
    return sorted(sentences)


def _section(claim: Mapping[str, Any]) -> str:
    """The number that a claim's id begins with."""
    return str(claim["id"]).split("-")[0].rstrip(string.ascii_lowercase)
