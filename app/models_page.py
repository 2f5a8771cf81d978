"""The researcher's page about a study's networks: what its packs say of them, and what the laboratory measured.

Nothing here comes from participants, so that it shows as much while a study is masked.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeGuard

from fastapi import APIRouter, Depends, Request
from fastapi.responses import FileResponse, HTMLResponse, Response
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app import auth, evaluations, printed, showing
from app.evaluations import PAGE, Evaluation, as_text
from app.models import Image, Pack, Stimulus
from app.participation import Refusal
from app.settings import Settings
from app.showing import Selected
from app.web import Db, render

router = APIRouter(dependencies=[Depends(auth.require_researcher)], include_in_schema=False)

ATTACKS = {
    "jsma": "Jacobian-based saliency map attack (JSMA)",
    "tgsm": "iterated targeted gradient sign method (iterated TGSM)",
}
EVALUATED = {"mnist", "svhn", "notmnist", "digits"}
"""The data sets of `python -m ml.evaluate`, which trains the laboratory's own networks."""
SAID_ELSEWHERE = {"model", "dataset", "data_sha256", "image_shape", "classes", "recipe", "seed"}


@dataclass(frozen=True)
class Success:
    """How many of the attacked pairs of source image and target reached their target."""

    count: float  # whole numbers, unless the pack has others
    n: float


@dataclass(frozen=True)
class ModelRow:
    """One network of a pack, as its manifest describes it; None and empty where it does not."""

    name: str
    clean_accuracy: float | None  # in [0, 1]
    success: Success | None
    training: list[str]
    checkpoint: str | None  # sha256
    stimuli: int
    grid: Image


@dataclass(frozen=True)
class PackPage:
    name: str
    sha256: str
    about: dict[str, str]  # what the pack was made from and how: title -> text
    models: list[ModelRow]
    evaluations: list[Evaluation]  # of these very networks
    evaluates: str  # the data set for the laboratory to evaluate networks like these; "" where it cannot
    pixels: tuple[int, int]  # width and height of its images


def settings(request: Request) -> Settings:
    found: Settings = request.app.state.settings
    return found


Config = Annotated[Settings, Depends(settings)]


@router.get("/results/{slug}/models", response_class=HTMLResponse)
def models(request: Request, selected: Selected, db: Db, config: Config) -> Response:
    """Read anew each time: an evaluation that has just been made is there without a restart."""
    found, broken = evaluations.read_all(config.results)
    with db.read() as session:
        study, data = showing.select_study(session, selected)
        packs = [_pack_page(session, link.pack, found) for link in study.packs]
    return render(
        request,
        "models.html",
        study=study,
        title=study.definition["file"]["title"],
        packs=packs,
        broken=broken,
        folder=config.results.name,
        query=f"version={study.version}&data={data}",
        printed=printed,
    )


@router.get("/results/{slug}/models/{folder}/{file}")
def evaluation_file(selected: Selected, folder: str, file: str, db: Db, config: Config) -> Response:
    """A figure, or the whole report: to keep, as its styles are its own, which no page of ours may have."""
    found, _ = evaluations.read_all(config.results)
    with db.read() as session:
        study, _ = showing.select_study(session, selected)
        networks = [_checkpoints(link.pack) for link in study.packs]
    for evaluation in found:
        if evaluation.name == folder and any(evaluation.is_about(pack) for pack in networks):
            if file == PAGE and evaluation.page is not None:
                return FileResponse(evaluation.page, media_type="text/html", filename=f"{folder}-{PAGE}")
            if (figure := evaluation.figure(file)) is not None:
                return FileResponse(figure, media_type="image/png")
    raise Refusal(404, "There is no such figure or report about this study’s networks here.")


def _pack_page(session: Session, pack: Pack, found: list[Evaluation]) -> PackPage:
    manifest, dataset = pack.manifest, _object(pack.manifest.get("dataset"))
    described = _described(manifest)
    stimuli = dict(
        session.execute(
            select(Stimulus.model, func.count()).where(Stimulus.pack_id == pack.id).group_by(Stimulus.model)
        ).all()
    )
    first = select(Stimulus.sha256).where(Stimulus.pack_id == pack.id).limit(1).scalar_subquery()
    image = session.scalars(select(Image).where(Image.sha256 == first)).one()
    checkpoints = _checkpoints(pack)
    return PackPage(
        name=pack.name,
        sha256=pack.sha256,
        about=_about(manifest),
        models=[
            _row(
                model,
                described.get(model, {}),
                stimuli.get(model, 0),
                session.get_one(Image, pack.grids[model]),
            )
            for model in pack.models
        ],
        evaluations=[evaluation for evaluation in found if evaluation.is_about(checkpoints)],
        evaluates=_evaluates(dataset, described),
        pixels=(image.width, image.height),
    )


def _evaluates(dataset: Mapping[str, Any], described: Mapping[str, Mapping[str, Any]]) -> str:
    own = any("own" in _object(about.get("training")) for about in described.values())
    name = as_text(dataset.get("name"))
    return name if name in EVALUATED and not own else ""


def _row(name: str, about: Mapping[str, Any], stimuli: int, grid: Image) -> ModelRow:
    accuracy = about.get("clean_accuracy")
    return ModelRow(
        name=name,
        clean_accuracy=accuracy if _is_number(accuracy) and 0 <= accuracy <= 1 else None,
        success=_success(_object(about.get("success_rate_before_filter"))),
        training=training(_object(about.get("training"))),
        checkpoint=as_text(about.get("checkpoint_sha256")) or None,
        stimuli=stimuli,
        grid=grid,
    )


def _success(reached: Mapping[str, Any]) -> Success | None:
    count, n = reached.get("count"), reached.get("n")
    return Success(count, n) if _is_number(count) and _is_number(n) and 0 <= count <= n > 0 else None


def training(config: Mapping[str, Any]) -> list[str]:
    """How a network was trained, one setting a line: schedule, settings of its defense, whatever else is there."""
    schedule, defense = (dict(_object(config.get(part))) for part in ("schedule", "settings"))
    lines = [
        _counted(schedule.pop(key), key, one)
        for key, one in (("epochs", "epoch"), ("batches", "batch"))
        if schedule.get(key)
    ]
    if "batch" in schedule:
        lines.append(_counted(schedule.pop("batch"), "images a batch", "image a batch"))
    lines += [_setting(key, value) for key, value in (schedule | defense).items() if value is not None]
    if config.get("teacher"):
        lines.append(f"towards the probabilities of a {_words(as_text(config['teacher']))}")
    rest = config.keys() - SAID_ELSEWHERE - {"schedule", "settings", "teacher"}
    return lines + [_setting(key, config[key]) for key in sorted(rest) if config[key] is not None]


def _about(manifest: Mapping[str, Any]) -> dict[str, str]:
    dataset, attack = _object(manifest.get("dataset")), _object(manifest.get("attack"))
    name = as_text(attack.get("name"))
    parameters = [_setting(key, value) for key, value in sorted(_object(attack.get("parameters")).items())]
    versions = [f"{key} {as_text(value)}" for key, value in sorted(_object(manifest.get("versions")).items())]
    said = {
        "Data set": ", ".join(filter(None, (as_text(dataset.get("name")), as_text(dataset.get("source"))))),
        "Only a part": as_text(dataset.get("note")),
        "Licence": as_text(dataset.get("licence")),
        "Attack": ", ".join([ATTACKS.get(name, name), *parameters]),
        "Made with": ", ".join([f"seed {as_text(manifest.get('seed'))}", *versions]),
    }
    return {title: text for title, text in said.items() if text}


def _described(manifest: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Model -> what the manifest says of it."""
    return {record["name"]: record for record in manifest["models"]}


def _checkpoints(pack: Pack) -> dict[str, str | None]:
    """Model -> sha256 of its checkpoint, where the manifest says it."""
    described = _described(pack.manifest)
    return {model: as_text(described[model].get("checkpoint_sha256")) or None for model in pack.models}


# Of a manifest the import checks what the study rests on; the rest may be anything that JSON knows.


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _counted(count: object, many: str, one: str) -> str:
    return f"{as_text(count)} {one if count == 1 else many}"


def _setting(key: str, value: object) -> str:
    return f"{_words(key)} {as_text(value)}"


def _words(name: str) -> str:
    return name.replace("_", " ")
