"""The pages of a session: plain forms that work without JavaScript; static/session.js makes them quicker."""

import uuid
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from app import answers, participation, withdrawal
from app.definition import Definition
from app.entrance import plain
from app.i18n import LANGUAGES, N_, translate
from app.models import NONE_PLAUSIBLE, Comment, Image
from app.participation import Refusal, SessionView
from app.recruiters import way_back
from app.web import Db, now, render

router = APIRouter(default_response_class=HTMLResponse)


@dataclass(frozen=True)
class TrialPage:
    """What a trial's page is made from; `labels` and the rest say nothing of where the image comes from."""

    state: str
    position: int
    answer_id: str
    image: str
    image_width: int
    image_height: int
    several_sizes: bool  # among the images of this session
    practice: bool
    number: int  # of the practice, or of this part
    total: int
    parts: int  # 2 where judging follows labelling
    pause_after: int | None  # images
    min_answer_ms: int
    labels: list[str]
    questions: list[str]  # of this part, in the order in which they are asked
    prediction: str | None
    chosen: dict[str, str]  # what a form that was sent back had chosen: field -> value

    @property
    def digits(self) -> list[str]:
        """The keys that choose labels by their position, "" after the tenth; none where each label is a key."""
        if all(len(label) == 1 for label in self.labels):
            return []
        return [*"1234567890", *[""] * len(self.labels)][: len(self.labels)]


@dataclass(frozen=True)
class GridPage:
    letter: str
    image: str
    width: int
    height: int


@router.get("/s/{token}")
def current(request: Request, token: str, db: Db) -> Response:
    """The page where this participant should be, always."""
    return _current(request, token, db)


@router.get("/s/{token}/label")
@router.get("/s/{token}/plausibility")
@router.get("/s/{token}/comments")
@router.get("/s/{token}/language")
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
        error = N_("Choose a reading, or “none is plausible”.")
    elif asked and label != NONE_PLAUSIBLE and not runner_up:
        error = N_("Choose a second reading too, or “no other”.")
    elif asked and label != NONE_PLAUSIBLE and label == runner_up:
        error = N_("Choose two different readings, or “no other”.")
    if error:
        chosen = {"label": label, "runner_up": runner_up}
        return _current(request, token, db, Refusal(422, error), chosen)
    second = NONE_PLAUSIBLE if label == NONE_PLAUSIBLE or not asked else runner_up
    try:
        with db.write() as session:
            here = answers.record_label(session, token, position, answer_id, label, second, None, {}, now())
    except Refusal as refusal:
        return _after_refusal(request, token, db, refusal)
    return _where_they_are(token, pause=here.pause_is_due)


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
        return _current(request, token, db, Refusal(422, N_("Choose yes or no.")))
    try:
        with db.write() as session:
            here = answers.record_plausibility(
                session, token, position, answer_id, plausible == "yes", None, {}, now()
            )
    except Refusal as refusal:
        return _after_refusal(request, token, db, refusal)
    return _where_they_are(token, pause=here.pause_is_due)


@router.get("/s/{token}/pause")
def pause(request: Request, token: str, db: Db) -> Response:
    """Between two blocks; without JavaScript only, whose page pauses in place."""
    with db.read() as session:
        here = participation.view(session, token)
    if here.state not in ("labelling", "judging") or not here.pause_is_due:
        return _where_they_are(token)
    return _session_page(request, "pause.html", here)


@router.post("/s/{token}/comments")
def comments(request: Request, token: str, db: Db, text: Annotated[str, Form()] = "") -> Response:
    text = plain(text)
    if len(text) > 10_000:
        refusal = Refusal(422, N_("That comment is too long: 10,000 characters at most."))
        return _current(request, token, db, refusal, {"text": text})
    try:
        with db.write() as session:
            answers.record_comment(session, token, text, now(), finish_too=True)
    except Refusal as refusal:
        if text and refusal.more.get("state") == "finished":
            raise  # said, rather than led past: what was written here is not stored
        return _after_refusal(request, token, db, refusal)
    return _where_they_are(token)


@router.get("/s/{token}/withdraw")
def confirm_withdrawal(request: Request, token: str, db: Db) -> Response:
    with db.read() as session:
        here = participation.view(session, token)
        stored = withdrawal.stored_about(session, here.participant)
    if here.state == "withdrawn":
        return _where_they_are(token)
    return _session_page(request, "withdraw.html", here, stored=stored)


@router.post("/s/{token}/withdraw")
def withdraw(token: str, db: Db) -> Response:
    with db.write() as session:
        deleted = withdrawal.withdraw(session, token, now())
        session.commit()
    if deleted:
        db.scrub()
    return _where_they_are(token)


@router.post("/s/{token}/language")
def language(token: str, db: Db, language: Annotated[str, Form(max_length=10)] = "") -> Response:
    with db.write() as session:
        answers.speak(session, token, language)
    return _where_they_are(token)


def _where_they_are(token: str, pause: bool = False) -> Response:
    """After a stored answer as after a form from an old page (back button, second tab, double click)."""
    return RedirectResponse(f"/s/{token}/pause" if pause else f"/s/{token}", status_code=303)


def _after_refusal(request: Request, token: str, db: Db, refusal: Refusal) -> Response:
    if refusal.status == 409:
        return _where_they_are(token)
    if refusal.status == 422:
        return _current(request, token, db, refusal)
    raise refusal


def _session_page(
    request: Request, template: str, here: SessionView, error: Refusal | None = None, **context: object
) -> Response:
    """A page in the participant's language; `switch` offers the study's other ones."""
    spoken = here.participant.language
    return render(
        request,
        template,
        status=error.status if error else 200,
        language=spoken,
        token=here.participant.token,
        here=here,
        definition=_in_their_language(here),
        error=translate(spoken, error.message, **error.values) if error else None,
        speaks=[name for name in LANGUAGES if name in here.definition.languages],
        **context,
    )


def _in_their_language(here: SessionView) -> Definition:
    return here.definition.translated(here.participant.language)


def _current(
    request: Request,
    token: str,
    db: Db,
    error: Refusal | None = None,
    chosen: dict[str, str] | None = None,
) -> Response:
    with db.read() as session:
        here = participation.view(session, token)
        if here.state in ("labelling", "judging"):
            page = _trial_page(session, here, chosen or {})
            return _session_page(request, f"{here.state}.html", here, error, page=page)
        if here.state == "commenting":
            groups = _grids(session, here) if here.definition.comments else []
            stored = session.get(Comment, here.participant.id)
            text = (chosen or {}).get("text", stored.text if stored else "")
            return _session_page(request, "commenting.html", here, error, groups=groups, text=text)
        left = withdrawal.stored_about(session, here.participant)
        back = way_back(session, here.participant, here.definition.completion.redirect_url)
    return _session_page(request, f"{here.state}.html", here, left=sum(left.values()), back=back)


def _trial_page(session: Session, here: SessionView, chosen: dict[str, str]) -> TrialPage:
    position = here.next_position
    assert position is not None
    trial = here.trial(position)
    image = session.get_one(Image, trial.sha256)
    number, total = here.progress()
    judging = here.state == "judging"
    return TrialPage(
        state=here.state,
        position=position,
        answer_id=str(uuid.uuid4()),
        image=f"/stimuli/{trial.sha256}.png",
        image_width=image.width,
        image_height=image.height,
        several_sizes=_sizes(session, here) > 1,
        practice=trial.kind == "practice",
        number=number,
        total=total,
        parts=2 if "plausibility" in here.definition.questions else 1,
        pause_after=here.definition.pause_after,
        min_answer_ms=here.definition.min_answer_ms,
        labels=here.labels,
        questions=[q for q in here.questions if (q == "plausibility") == judging],
        prediction=trial.prediction,
        chosen=chosen,
    )


def _sizes(session: Session, here: SessionView) -> int:
    """How many sizes the images of a session have."""
    shown = select(Image.width, Image.height).where(Image.sha256.in_([trial.sha256 for trial in here.trials]))
    return len(session.execute(shown.distinct()).all())


def _grids(session: Session, here: SessionView) -> list[list[GridPage]]:
    """The sheets A, B, C, ... as this participant sees them, those of a pack together."""
    packs = {link.pack.name: link.pack for link in here.study.packs}
    groups: dict[str, list[GridPage]] = {}
    for i, name in enumerate(here.participant.grid_order):
        pack_name, model = name.split("/", 1)
        image = session.get_one(Image, packs[pack_name].grids[model])
        groups.setdefault(pack_name, []).append(
            GridPage(chr(ord("A") + i), f"/stimuli/{image.sha256}.png", image.width, image.height)
        )
    return list(groups.values())
