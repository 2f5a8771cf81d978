"""The participant's pages: plain forms that work without JavaScript; static/session.js makes them quicker."""

import uuid
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app import definition as definitions
from app import enrollment, participation
from app.definition import Definition
from app.models import NONE_PLAUSIBLE, Comment, Image, Study
from app.participation import Refusal, SessionView
from app.study import Db, now

router = APIRouter(default_response_class=HTMLResponse)

RECRUITER_KEYS = ("PROLIFIC_PID", "STUDY_ID", "SESSION_ID", "workerId", "id")  # kept from a recruiter's link


@dataclass(frozen=True)
class StudyCard:
    slug: str
    definition: Definition


@dataclass(frozen=True)
class TrialPage:
    token: str
    study_title: str
    state: str
    position: int
    answer_id: str
    image: str
    image_width: int
    image_height: int
    practice: bool
    number: int  # of this phase, practice left out
    total: int
    parts: int  # 2 where judging follows labelling
    labels: list[str]
    asks_runner_up: bool
    prediction: str | None
    chosen: dict[str, str]  # what a form that was sent back had chosen: field -> value
    error: str | None


@dataclass(frozen=True)
class GridPage:
    letter: str
    pack: str
    image: str
    width: int
    height: int


def render(request: Request, template: str, status: int = 200, **context: object) -> Response:
    """A page; pages about one person are never kept by caches."""
    response: Response = request.app.state.templates.TemplateResponse(
        request, template, context, status_code=status
    )
    response.headers["Cache-Control"] = "no-store"
    return response


@router.get("/")
def studies(request: Request, db: Db) -> Response:
    with db.read() as session:
        slugs = session.scalars(select(Study.slug).group_by(Study.slug).order_by(func.min(Study.id))).all()
        active = [definitions.active(session, slug) for slug in slugs]
        cards = [StudyCard(study.slug, definitions.of(study)) for study in active if study and study.open]
    return render(request, "studies.html", studies=cards)


@router.get("/study/{slug}")
def information(request: Request, slug: str, db: Db) -> Response:
    return _information(request, slug, db, dict(request.query_params), error=None)


async def _form(request: Request) -> dict[str, str]:
    return {key: value for key, value in (await request.form()).items() if isinstance(value, str)}


@router.post("/study/{slug}")
def consent(request: Request, slug: str, db: Db, form: Annotated[dict[str, str], Depends(_form)]) -> Response:
    sent = dict(request.query_params) | form
    if form.get("consent") != "yes":
        message = "Please tick the box if you agree to take part; without it the study cannot begin."
        return _information(request, slug, db, sent, error=message)
    with db.write() as session:
        participant = enrollment.start(session, slug, _recruiter_ids(sent), now())
    return RedirectResponse(f"/s/{participant.token}", status_code=303)


def _information(request: Request, slug: str, db: Db, query: dict[str, str], error: str | None) -> Response:
    with db.read() as session:
        study = definitions.active(session, slug)
        if study is None or not study.open:
            raise Refusal(404, f"There is no study {slug!r} open here.")
        definition = definitions.of(study)
    return render(
        request,
        "information.html",
        status=422 if error else 200,
        slug=slug,
        version=study.version,
        definition=definition,
        kept=_recruiter_ids(query),
        error=error,
    )


def _recruiter_ids(query: dict[str, str]) -> dict[str, str]:
    return {key: _plain(query[key])[:200] for key in RECRUITER_KEYS if _plain(query.get(key, ""))}


def _plain(text: str) -> str:
    """Text as it is stored: lines end in \\n, whatever the browser sent, and no NUL, which PostgreSQL refuses."""
    text = text.encode("utf-8", "ignore").decode()  # a form's charset may smuggle in halves of characters
    return text.replace("\r\n", "\n").replace("\x00", "").strip()


@router.get("/s/{token}")
def current(request: Request, token: str, db: Db) -> Response:
    """The page where this participant should be, always."""
    return _current(request, token, db)


@router.get("/s/{token}/label")
@router.get("/s/{token}/plausibility")
@router.get("/s/{token}/comments")
def reopened(token: str) -> Response:
    """The address of a form that was sent back with an error, opened anew (a phone does that by itself)."""
    return _where_they_are(token)


@router.post("/s/{token}/label")
def label(
    request: Request,
    token: str,
    db: Db,
    position: Annotated[int, Form()],
    answer_id: Annotated[uuid.UUID, Form()],
    label: Annotated[str, Form(max_length=50)] = "",
    runner_up: Annotated[str, Form(max_length=50)] = "",
) -> Response:
    with db.read() as session:
        here = participation.view(session, token)
    if here.state != "labelling" or here.next_position != position:
        return _where_they_are(token)
    asked = "runner_up" in here.definition.questions
    error = None
    if not label:
        error = "Choose a label, or “none is plausible”."
    elif asked and label != NONE_PLAUSIBLE and not runner_up:
        error = "Choose a second label too, or “no other”."
    elif asked and label != NONE_PLAUSIBLE and label == runner_up:
        error = "Choose two different labels, or “no other”."
    if error:
        return _current(request, token, db, error, {"label": label, "runner_up": runner_up})
    second = NONE_PLAUSIBLE if label == NONE_PLAUSIBLE or not asked else runner_up
    try:
        with db.write() as session:
            participation.record_label(session, token, position, answer_id, label, second, None, {}, now())
    except Refusal as refusal:
        return _after_refusal(request, token, db, refusal)
    return _where_they_are(token)


@router.post("/s/{token}/plausibility")
def plausibility(
    request: Request,
    token: str,
    db: Db,
    position: Annotated[int, Form()],
    answer_id: Annotated[uuid.UUID, Form()],
    plausible: Annotated[str, Form(max_length=3)] = "",
) -> Response:
    with db.read() as session:
        here = participation.view(session, token)
    if here.state != "judging" or here.next_position != position:
        return _where_they_are(token)
    if plausible not in ("yes", "no"):
        return _current(request, token, db, "Choose yes or no.")
    try:
        with db.write() as session:
            participation.record_plausibility(
                session, token, position, answer_id, plausible == "yes", None, {}, now()
            )
    except Refusal as refusal:
        return _after_refusal(request, token, db, refusal)
    return _where_they_are(token)


@router.post("/s/{token}/comments")
def comments(request: Request, token: str, db: Db, text: Annotated[str, Form()] = "") -> Response:
    text = _plain(text)
    if len(text) > 10_000:
        error = "That comment is too long: 10,000 characters at most."
        return _current(request, token, db, error, {"text": text})
    try:
        with db.write() as session:
            participation.record_comment(session, token, text, now(), finish_too=True)
    except Refusal as refusal:
        if text and refusal.more.get("state") == "finished":
            raise  # said, rather than led past: what was written here is not stored
        return _after_refusal(request, token, db, refusal)
    return _where_they_are(token)


@router.get("/s/{token}/withdraw")
def confirm_withdrawal(request: Request, token: str, db: Db) -> Response:
    with db.read() as session:
        here = participation.view(session, token)
    if here.state == "withdrawn":
        return _where_they_are(token)
    return render(request, "withdraw.html", here=here)


@router.post("/s/{token}/withdraw")
def withdraw(token: str, db: Db) -> Response:
    with db.write() as session:
        participation.withdraw(session, token, now())
    return _where_they_are(token)


def _where_they_are(token: str) -> Response:
    """After a stored answer as after a form from an old page (back button, second tab, double click)."""
    return RedirectResponse(f"/s/{token}", status_code=303)


def _after_refusal(request: Request, token: str, db: Db, refusal: Refusal) -> Response:
    if refusal.status == 409:
        return _where_they_are(token)
    if refusal.status == 422:
        return _current(request, token, db, refusal.detail)
    raise refusal


def _current(
    request: Request, token: str, db: Db, error: str | None = None, chosen: dict[str, str] | None = None
) -> Response:
    with db.read() as session:
        here = participation.view(session, token)
        status = 422 if error else 200
        if here.state in ("labelling", "judging"):
            position = here.next_position
            assert position is not None
            trial = here.trial(position)
            image = session.get_one(Image, trial.sha256)
            number, total = here.progress()
            page = TrialPage(
                token=token,
                study_title=here.definition.title,
                state=here.state,
                position=position,
                answer_id=str(uuid.uuid4()),
                image=f"/stimuli/{trial.sha256}.png",
                image_width=image.width,
                image_height=image.height,
                practice=trial.kind == "practice",
                number=number,
                total=total,
                parts=2 if "plausibility" in here.definition.questions else 1,
                labels=here.labels,
                asks_runner_up="runner_up" in here.definition.questions,
                prediction=trial.prediction,
                chosen=chosen or {},
                error=error,
            )
            return render(request, f"{here.state}.html", status=status, page=page)
        if here.state == "commenting":
            grids = _grids(session, here) if here.definition.comments else []
            stored = session.get(Comment, here.participant.id)
            text = (chosen or {}).get("text", stored.text if stored else "")
            return render(
                request, "commenting.html", status=status, here=here, grids=grids, error=error, text=text
            )
    return render(request, f"{here.state}.html", here=here)


def _grids(session: Session, here: SessionView) -> list[GridPage]:
    packs = {link.pack.name: link.pack for link in here.study.packs}
    pages = []
    for i, name in enumerate(here.participant.grid_order):
        pack_name, model = name.split("/", 1)
        image = session.get_one(Image, packs[pack_name].grids[model])
        pages.append(
            GridPage(chr(ord("A") + i), pack_name, f"/stimuli/{image.sha256}.png", image.width, image.height)
        )
    return pages
