"""The participant's JSON API: shapes are checked here; `batches` and `answers` check the meaning and
commit before the reply goes out."""

import json
import re
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response
from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictStr,
)
from sqlalchemy import select

from app import answers, participation, recruiters, withdrawal
from app import definition as definitions
from app.batches import Answer, Batches, Stored
from app.csrf import ELSEWHERE, from_elsewhere
from app.db import Database
from app.enrollment import Beginning
from app.i18n import N_
from app.models import NONE_PLAUSIBLE, Image
from app.participation import Refusal, SessionView
from app.recruiters import way_back
from app.web import Db, enroll, now

router = APIRouter()


DAY_MS = 24 * 3600 * 1000.0
DISPLAY_LIMIT = 4096  # characters of JSON
NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")  # as JSON writes it; behind a backslash it is text
MOST_NESTED = 50  # objects and lists in it; the pages send one


def _small(display: dict[str, Any]) -> dict[str, Any]:
    try:
        written = json.dumps(display, allow_nan=False)
    except ValueError:
        raise ValueError("display contains a number that JSON does not know") from None
    except RecursionError:
        raise ValueError("display is nested too deeply") from None
    if written.count("{") + written.count("[") > MOST_NESTED:  # the database's driver recurses, too
        raise ValueError("display is nested too deeply")
    if NUL.search(written) or ("\\ud" in written and not _is_text(json.dumps(display, ensure_ascii=False))):
        raise ValueError("display contains characters that cannot be stored")
    if len(written) > DISPLAY_LIMIT:
        raise ValueError(f"display is longer than {DISPLAY_LIMIT} characters")
    return display


def _is_text(text: str) -> bool:
    """Whether it is of whole characters: JSON can write halves of them."""
    return text.encode("utf-8", "ignore").decode() == text


def _consented(value: object) -> object:
    """Refuses 1, which Python takes for true."""
    if value is not True:
        raise ValueError("must be true")
    return value


def _storable(text: str) -> str:
    """Refuses what a database cannot keep: NUL and halves of characters."""
    if "\x00" in text or not _is_text(text):
        raise ValueError("text contains characters that cannot be stored")
    return text


def _bounded(external: dict[str, str]) -> dict[str, str]:
    if len(external) > 10:
        raise ValueError("external may have 10 keys at most")
    kept = {key: value.strip() for key, value in external.items()}
    for key, value in kept.items():
        _storable(key + value)
        if not (1 <= len(key) <= 50 and 1 <= len(value) <= recruiters.LONGEST):
            raise ValueError(f"external: keys have 1 to 50 characters, values 1 to {recruiters.LONGEST}")
    return kept


Label = Annotated[StrictStr, Field(max_length=50)]
ResponseTime = Annotated[float | None, Field(ge=0, le=DAY_MS, allow_inf_nan=False, strict=True)]
Display = Annotated[dict[str, Any], AfterValidator(_small)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class NewSession(_Body):
    """`request_id` is the client's own: sent again after a lost reply, it begins no second session.

    With `packs`, their sha256, none begins unless all of the study's are among them: a program that knows images of
    other packs could not answer.
    """

    study: Annotated[str, Field(max_length=60), AfterValidator(_storable)]
    consent: Annotated[Literal[True], BeforeValidator(_consented)]
    request_id: UUID | None = None
    language: Annotated[str, Field(max_length=10)] | None = None
    packs: Annotated[list[StrictStr], Field(max_length=100)] | None = None
    external: Annotated[dict[str, StrictStr], AfterValidator(_bounded)] = {}


class LabelAnswer(_Body):
    """`none` (or null) says that no label is plausible; `rt_ms` is null where it could not be measured."""

    answer_id: UUID
    label: Label | None
    runner_up: Label | None = None
    rt_ms: ResponseTime = None
    display: Display = {}


class PlausibilityAnswer(_Body):
    answer_id: UUID
    plausible: StrictBool
    rt_ms: ResponseTime = None
    display: Display = {}


class CommentBody(_Body):
    text: Annotated[StrictStr, AfterValidator(_storable)] = Field(
        max_length=10_000, validation_alias=AliasChoices("text", "comment", "comments")
    )


@router.post("/api/sessions", status_code=201)
def create_session(request: Request, body: NewSession, db: Db) -> dict[str, str]:
    """201 also for one who comes back: what is asked for, a session of this person, is there."""
    if from_elsewhere(request):
        raise Refusal(403, ELSEWHERE)
    if body.packs is not None:
        _check_packs(db, body.study, body.packs)
    beginning = Beginning(body.study, body.external, body.request_id, body.language)
    participant = enroll(request, beginning)
    return {"token": participant.token, "url": f"/s/{participant.token}"}


def _check_packs(db: Database, slug: str, known: list[str]) -> None:
    with db.read() as session:
        study = definitions.active(session, slug)
        if study is not None and not set(study.definition["packs"].values()) <= set(known):
            raise Refusal(409, N_("This study shows images of other packs."), other_packs=True)


@router.get("/api/sessions/{token}")
def read_session(token: str, db: Db) -> dict[str, Any]:
    with db.read() as session:
        return describe(participation.view(session, token))


@router.put("/api/sessions/{token}/trials/{position}/label")
async def put_label(request: Request, token: str, position: int, body: LabelAnswer) -> Response:
    # null says "none" as the word does; a field that is not there says nothing.
    said_none = body.runner_up is None and "runner_up" in body.model_fields_set
    content = {
        "label": NONE_PLAUSIBLE if body.label is None else body.label,
        "runner_up": NONE_PLAUSIBLE if said_none else body.runner_up,
    }
    sent = Answer(token, position, "labelling", body.answer_id, content, body.rt_ms, body.display)
    return await _stored(request, sent)


@router.put("/api/sessions/{token}/trials/{position}/plausibility")
async def put_plausibility(request: Request, token: str, position: int, body: PlausibilityAnswer) -> Response:
    content = {"plausible": body.plausible}
    sent = Answer(token, position, "judging", body.answer_id, content, body.rt_ms, body.display)
    return await _stored(request, sent)


@router.post("/api/sessions/{token}/comments")
def post_comments(token: str, body: CommentBody, db: Db) -> dict[str, Any]:
    with db.write() as session:
        here = answers.record_comment(session, token, body.text, now())
        return {"stored": True, "state": here.state}


@router.post("/api/sessions/{token}/finish")
def post_finish(token: str, db: Db) -> dict[str, Any]:
    with db.write() as session:
        here = answers.finish(session, token, now())
    with db.read() as session:  # nobody need wait for it to write
        redirect_url = way_back(session, here.participant, here.definition.completion.redirect_url)
    return {
        "state": here.state,
        "completion_code": here.participant.completion_code,
        "redirect_url": redirect_url,
    }


@router.post("/api/sessions/{token}/withdraw")
def post_withdraw(token: str, db: Db) -> dict[str, Any]:
    with db.write() as session:
        deleted = withdrawal.withdraw(session, token, now())
        session.commit()
    if deleted:
        db.scrub()
    with db.read() as session:
        here = participation.view(session, token)
        left = withdrawal.stored_about(session, here.participant)
    return {
        "state": here.state,
        "deleted": True,
        "rows_deleted": here.participant.deleted,
        "rows_left": sum(left.values()),
    }


@router.get("/stimuli/{sha256}.png")
def read_image(sha256: str, db: Db) -> Response:
    with db.read() as session:
        # PostgreSQL takes no text with a NUL, which no hash has.
        png = session.scalar(select(Image.png).where(Image.sha256 == sha256)) if sha256.isalnum() else None
    if png is None:
        raise Refusal(404, N_("There is no image of this name here."))
    return Response(
        png, media_type="image/png", headers={"Cache-Control": "public, max-age=31536000, immutable"}
    )


def describe(here: SessionView) -> dict[str, Any]:
    """The session as the participant's browser may know it: no model, source or target is in it.

    `order`: the positions of the present part as they come, answered ones too, so that a browser that loses its
    connection can go on to the part's end.
    """
    in_judging = here.state in ("judging", "commenting", "finished")
    return {
        "study": here.study.slug,
        "state": here.state,
        "labels": here.labels,
        "questions": here.questions,
        "trials_total": len(here.trials),
        "next_position": here.next_position,
        "order": here.order,
        "trials": [
            {
                "position": trial.position,
                "image": f"/stimuli/{trial.sha256}.png",
                "answered": trial.labelled if not in_judging or trial.judging_order is None else trial.judged,
                "prediction": trial.prediction,
                "practice": trial.kind == "practice",
            }
            for trial in here.trials
        ],
    }


async def _stored(request: Request, sent: Answer) -> Response:
    """`next_position` is null once the phase that was answered is over; `state` says what comes then.

    Without FastAPI's dependencies and checks of a reply, as every answer would pay for them.
    """
    batches: Batches = request.app.state.batches
    after = await batches.put(sent)
    if after is None:
        after = await run_in_threadpool(_store_alone, request.app.state.database, sent)
    return JSONResponse({"stored": True, "state": after.state, "next_position": after.next_position})


def _store_alone(db: Database, sent: Answer) -> Stored:
    """What is not plain: stored in a transaction of its own, known already, or refused."""
    record = answers.record_label if sent.part == "labelling" else answers.record_plausibility
    with db.write() as session:
        here = record(
            session,
            sent.token,
            sent.position,
            sent.answer_id,
            **sent.content,
            rt_ms=sent.rt_ms,
            display=sent.display,
            now=now(),
        )
        return Stored(here.state, here.next_position if here.state == sent.part else None)
