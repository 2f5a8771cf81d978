"""What every column of the export means: one table, from which the codebook and the Psych-DS metadata are made."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from app.definition import Definition
from app.models import NONE_PLAUSIBLE
from app.results import Results

YES_NO = {"1": "yes", "0": "no"}
KINDS = {
    "main": "an adversarial image",
    "practice": "a clean image, before the others",
    "control": "a clean image among the others",
}
STATES = {
    "labelling": "giving labels",
    "judging": "judging the network's answers",
    "commenting": "all images answered, the end not reached",
    "finished": "reached the end",
    "withdrawn": "took everything back; what they answered is deleted",
}
# Columns whose levels are those of the study: filled in by `levels`.
LABELS, LABELS_OR_NONE, MODELS, PACKS = "labels", "labels or none", "models", "packs"


@dataclass(frozen=True)
class Column:
    """A column's meaning; `levels` are its values, or which of the study's names they are."""

    description: str
    unit: str = ""
    levels: dict[str, str] | str | None = None
    numeric: bool = False


RESPONSES = {
    "participant": Column("pseudonym, drawn at random and apart from the participant's link"),
    "study": Column("the study's name in its address"),
    "version": Column("first 12 digits of the SHA-256 of study/frozen.json"),
    "pack": Column("stimulus pack of the image", levels=PACKS),
    "position": Column("place of the image in the labelling part, from 1, practice first", numeric=True),
    "kind": Column("kind of trial; only main trials enter the results", levels=KINDS),
    "stimulus": Column("SHA-256 of the image shown (PNG)"),
    "model": Column("network for which the image was made; empty for clean images", levels=MODELS),
    "source_label": Column("true label of the original image", levels=LABELS),
    "target_label": Column(
        "the network's answer, which the attack aimed at; empty for clean images", levels=LABELS
    ),
    "label": Column("the participant's first label", levels=LABELS_OR_NONE),
    "runner_up": Column("the second label; empty where it was not asked", levels=LABELS_OR_NONE),
    "plausible": Column(
        "is the network's answer a reasonable mistake? empty: not asked, or not yet", levels=YES_NO
    ),
    "fooled": Column("the first label is the network's answer; empty for clean images", levels=YES_NO),
    "reasonable": Column(
        "the network's answer is the first or second label, or none is plausible; empty for clean images",
        levels=YES_NO,
    ),
    "label_rt_ms": Column(
        "from the image's appearance until the label was given; empty: not measured", "ms", numeric=True
    ),
    "plausibility_rt_ms": Column(
        "from the image's appearance until it was judged; empty: not judged, or not measured",
        "ms",
        numeric=True,
    ),
    "answered_at": Column("when the label was stored, UTC, ISO 8601"),
    "excluded": Column("a rule of the study file excludes this participant from the results", levels=YES_NO),
}
PARTICIPANTS = {
    "participant": RESPONSES["participant"],
    "study": RESPONSES["study"],
    "version": RESPONSES["version"],
    "simulated": Column("played by a program; never mixed with people", levels=YES_NO),
    "number": Column(
        "order of arrival, simulated ones too, from 1; enters the assignment of images", numeric=True
    ),
    "state": Column("where the participant is; of the withdrawn nothing else is told", levels=STATES),
    "started_at": Column("when consent was given, UTC, ISO 8601"),
    "last_seen_at": Column("when anything last came from them, UTC, ISO 8601"),
    "finished_at": Column("when they reached the end, UTC, ISO 8601; empty: not yet"),
    "excluded_reason": Column("the rule of the study file that excludes them; empty: none, or not finished"),
    "answers": Column("labels and judgments given, practice images' too", numeric=True),
    "answers_asked": Column("labels and judgments that a whole session has", numeric=True),
    "minutes": Column("from consent until the end, or until last seen", "min", numeric=True),
    "median_label_rt_ms": Column(
        "median time to label a main image; empty: none was measured", "ms", numeric=True
    ),
    "controls_right": Column("control images labeled as what they are", numeric=True),
    "language": Column("of the pages, at last"),
    "consent_language": Column("in which the consent to this version of the study was read"),
    "runner_up_first": Column("the second label was asked above the first", levels=YES_NO),
    "questions": Column("the questions in the order in which they were asked"),
    "grid_order": Column("pack/model of the unnamed grids A, B, C, ... as shown to this participant"),
}
TRIALS = {
    "participant": RESPONSES["participant"],
    "position": RESPONSES["position"],
    "kind": RESPONSES["kind"],
    "source_index": Column(
        "index of the original image in its data set: images made from it share it", numeric=True
    ),
    "placebo_label": Column(
        "chance level: a label that is neither source nor target, from the seed; empty for clean images",
        levels=LABELS,
    ),
    "judging_order": Column(
        "place of the image in the judging part, from 1; empty: never judged", numeric=True
    ),
    "judged_at": Column("when the judgment was stored, UTC, ISO 8601; empty: not judged"),
}
DISPLAY = {
    "css_width": Column("width of the image on the page", "CSS pixels", numeric=True),
    "css_height": Column("height of the image on the page", "CSS pixels", numeric=True),
    "device_pixel_ratio": Column("device pixels per CSS pixel", numeric=True),
    "interpolation": Column("CSS image-rendering, as the browser said it"),
    "zoom": Column("pinch zoom of the browser's window", numeric=True),
    "viewport_width": Column("width of the browser's window", "CSS pixels", numeric=True),
    "viewport_height": Column("height of the browser's window", "CSS pixels", numeric=True),
    "input": Column("what the last press was made with: mouse, touch, pen or keyboard"),
    "hidden_times": Column("how often the page was hidden while the image was on it", numeric=True),
    "hidden_ms": Column("for how long it was hidden", "ms", numeric=True),
    "held_keys": Column("presses that came from a key held down, which are no answers", numeric=True),
    "too_early": Column(
        "presses sooner than anybody can have seen the image, which are no answers", numeric=True
    ),
    "image_retries": Column("how often the image had to be loaded again", numeric=True),
    "waited_ms": Column(
        "how long the answer waited in the browser, by its clock: from the press until the request that was stored "
        "was sent",
        "ms",
        numeric=True,
    ),
}
LEFT_OUT = Column(
    "entries of what the browser reported that no column holds, or that are not of their column's kind",
    numeric=True,
)
for _part, _when in (("label", "labelling"), ("plausibility", "judging")):
    for _name, _column in (*DISPLAY.items(), ("display_left_out", LEFT_OUT)):
        TRIALS[f"{_part}_{_name}"] = Column(
            f"{_column.description}; while {_when}; empty: not reported", _column.unit, None, _column.numeric
        )
STIMULI = {
    "stimulus": RESPONSES["stimulus"],
    "pack": RESPONSES["pack"],
    "model": RESPONSES["model"],
    "source_index": TRIALS["source_index"],
    "source_label": RESPONSES["source_label"],
    "target_label": RESPONSES["target_label"],
    "prediction": Column("the network's answer, measured on the PNG as stored", levels=LABELS),
    "target_probability": Column("the network's softmax probability of the target", "1", numeric=True),
    "iterations": Column("steps of the attack", numeric=True),
    "pixels_changed": Column("pixels that differ from the original", numeric=True),
    "l2": Column("Euclidean distance to the original, pixels in [0, 1]", "1", numeric=True),
    "linf": Column("largest change of a pixel, pixels in [0, 1]", "1", numeric=True),
}
COMMENTS = {
    "participant": RESPONSES["participant"],
    "written_at": Column("when the comment was stored, UTC, ISO 8601"),
    "comment": Column("what the participant wrote about the grids; README.md says what a leading ' means"),
}
RECRUITER_IDS = {
    "participant": RESPONSES["participant"],
    "id_name": Column("name of the parameter in the recruiter's link; ' as in comments"),
    "id_value": Column("its value: may identify a person; ' as in comments"),
}


@dataclass(frozen=True)
class Table:
    title: str
    columns: dict[str, Column]


TABLES = {
    "responses": Table("One row for each answered trial; the results stand on it", RESPONSES),
    "participants": Table("One row for everybody who began, in the order of arrival", PARTICIPANTS),
    "trials": Table("More about each row of the responses, in the same order", TRIALS),
    "stimuli": Table("One row for each adversarial image of the study's packs", STIMULI),
    "comments": Table("What participants wrote; only on request", COMMENTS),
    "recruiterids": Table("What recruiters' links said about participants; only on request", RECRUITER_IDS),
}
"""Every data file by its name in the file's name, and all its columns in order."""


def file_name(slug: str, table: str) -> str:
    """The file of a table, named as Psych-DS wants it: keywords with values of letters and digits alone."""
    return f"data/study-{re.sub('[^a-zA-Z0-9]', '', slug)}_description-{table}_data.csv"


def levels(column: Column, results: Results) -> dict[str, str]:
    """The values that the column may have, and what they mean ("" where they say it themselves)."""
    if isinstance(column.levels, dict):
        return column.levels
    labels = dict.fromkeys(results.labels, "")
    names = {
        LABELS: labels,
        LABELS_OR_NONE: labels | {NONE_PLAUSIBLE: "no label is plausible"},
        MODELS: dict.fromkeys(next(iter(results.packs.values())).models, ""),
        PACKS: dict.fromkeys(results.packs, ""),
    }
    return names[column.levels] if column.levels else {}


def codebook(results: Results, tables: list[str]) -> Iterator[str]:
    """The codebook as Markdown, of the data files that there are."""
    yield f"# Codebook: {results.study.slug}, version {results.study.version}, {results.data} participants\n\n"
    yield (
        "Made from the table that the program writes the files by. UTF-8, commas, one line of column names; an "
        "empty cell: there is none. Times are UTC.\n"
    )
    for name in tables:
        table = TABLES[name]
        yield f"\n## {file_name(results.study.slug, name)}\n\n{table.title}.\n\n"
        yield "| column | meaning | unit | values |\n| --- | --- | --- | --- |\n"
        for column, about in table.columns.items():
            found = levels(about, results)
            values = ", ".join(f"{value} ({said})" if said else value for value, said in found.items())
            cells = (
                f"`{column}`",
                about.description,
                about.unit,
                values or ("number" if about.numeric else "text"),
            )
            yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def dataset_description(results: Results, definition: Definition, tables: list[str]) -> str:
    """dataset_description.json of Psych-DS: a schema.org Dataset."""
    columns = {name: about for table in tables for name, about in TABLES[table].columns.items()}
    slug, version = results.study.slug, results.study.version
    description = {
        "@context": "https://schema.org/",
        "@type": "Dataset",
        "name": definition.title,
        "description": (
            "What people said about adversarial images made for several neural networks, without knowing where "
            f"the images came from: which label they see, and whether the network's answer is reasonable. Study "
            f"{slug!r}, version {version}, {results.data} participants, as of {results.summary.at.isoformat()}."
        ),
        "schemaVersion": "Psych-DS 1.5.1",
        "identifier": f"{slug}-{version}-{results.data}",
        "version": version,
        "keywords": [
            "adversarial examples",
            "human perception",
            "image classification",
            "psychology experiment",
        ],
        "measurementTechnique": "web experiment",
        "variableMeasured": [_property(name, about, results) for name, about in columns.items()],
    }
    return json.dumps(description, indent=1, ensure_ascii=False) + "\n"


def _property(name: str, about: Column, results: Results) -> dict[str, Any]:
    found: dict[str, Any] = {"@type": "PropertyValue", "name": name, "description": about.description}
    if about.unit:
        found["unitText"] = about.unit
    if values := levels(about, results):
        found["valueReference"] = [
            {"@type": "PropertyValue", "value": value} | ({"description": said} if said else {})
            for value, said in values.items()
        ]
    return found
