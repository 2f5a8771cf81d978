"""The researcher's pages and downloads."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response, StreamingResponse
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app import auth, printed, progress, results
from app import definition as definitions
from app.definition import Definition
from app.export import responses_csv
from app.figures import rates_figure
from app.models import Participant, Study, Unmasking
from app.observations import Data
from app.outcomes import OUTCOMES
from app.participation import Refusal
from app.results import PackResults, Results
from app.web import Db, now, render

router = APIRouter()
researcher = APIRouter(dependencies=[Depends(auth.require_researcher)])

FIGURE_OUTCOMES = {
    "human_fooled": "Human fooled",
    "mistake_reasonable": "Mistake reasonable",
    "mistake_reasonable_direct": "Judged reasonable when asked",
}
# The primary comparison as a sentence: "<whose> A <did> ... than <others'> B".
FINDINGS = {
    "human_fooled": ("images made for", "fooled participants", "those made for"),
    "mistake_reasonable": ("mistakes of", "counted as reasonable", "those of"),
    "mistake_reasonable_direct": ("mistakes of", "were judged reasonable", "those of"),
}


@dataclass(frozen=True)
class StudyRow:
    slug: str
    definition: Definition
    started: int
    finished: int
    simulated: int


@dataclass(frozen=True)
class Which:
    """Which version and which participants a page is about."""

    slug: str
    version: str | None
    data: Data | None


def which(
    slug: str,
    version: Annotated[str | None, Query(pattern="^[0-9a-f]{12}$")] = None,
    data: Annotated[Data | None, Query()] = None,
) -> Which:
    return Which(slug, version, data)


Selected = Annotated[Which, Depends(which)]


@router.get("/signin", include_in_schema=False)
def sign_in(request: Request, key: str = "") -> Response:
    secret = request.app.state.settings.secret
    if not auth.is_sign_in_key(secret, key):
        raise Refusal(
            401, "This sign-in link is not valid here; open the Dashboard link that the server printed."
        )
    response = RedirectResponse("/results", status_code=303)
    response.set_cookie(
        auth.COOKIE,
        auth.cookie(secret),
        max_age=auth.SIGNED_IN_FOR_S,
        httponly=True,
        samesite="lax",
        secure=request.url.scheme == "https",
    )
    return response


@researcher.get("/results", response_class=HTMLResponse, include_in_schema=False)
def overview(request: Request, db: Db) -> Response:
    rows = []
    with db.read() as session:
        for slug in session.scalars(
            select(Study.slug).group_by(Study.slug).order_by(func.min(Study.id))
        ).all():
            study = definitions.active(session, slug)
            if study is None:
                continue
            counts: dict[bool, tuple[int, int]] = {
                simulated: (started, finished)
                for simulated, started, finished in session.execute(
                    select(Participant.simulated, func.count(), func.count(Participant.finished_at))
                    .where(Participant.study_id == study.id)
                    .group_by(Participant.simulated)
                )
            }
            started, finished = counts.get(False, (0, 0))
            pretended, _ = counts.get(True, (0, 0))
            rows.append(StudyRow(slug, definitions.of(study), started, finished, pretended))
    return render(request, "overview.html", studies=rows)


@researcher.get("/results/{slug}.json")
def as_json(selected: Selected, db: Db) -> Response:
    with db.read() as session:
        found = _results(session, selected)
    return JSONResponse(results.results_json(found), headers={"Cache-Control": "no-store"})


@researcher.get("/results/{slug}", response_class=HTMLResponse, include_in_schema=False)
def dashboard(request: Request, selected: Selected, db: Db) -> Response:
    with db.read() as session:
        found = _results(session, selected)
        versions = session.scalars(
            select(Study)
            .where(Study.slug == selected.slug)
            .order_by(Study.activated_at.desc(), Study.id.desc())
        ).all()
        kinds = progress.kinds(session, found.study)
    figures = {
        name: rates_figure(
            pack.models,
            {k: v for k, v in FIGURE_OUTCOMES.items() if k not in _not_asked(found.definition)},
            f"Rates per model with 95 % intervals, {name}",
        )
        for name, pack in found.packs.items()
    }
    return render(
        request,
        "results.html",
        results=found,
        versions=versions,
        kinds=kinds,
        figures=figures,
        notes={name: _notes(pack) for name, pack in found.packs.items()},
        printed=printed,
        outcomes={name: (o.title, o.meaning) for name, o in OUTCOMES.items()},
        findings=FINDINGS,
        not_asked=_not_asked(found.definition),
    )


@researcher.get("/results/{slug}/responses.csv")
def as_csv(selected: Selected, db: Db) -> Response:
    with db.read() as session:
        study, data = _selected(session, selected)

    def lines() -> Iterator[str]:
        # One reading session, so that the rows and who is excluded are of the same instant.
        with db.read() as session:
            here, _ = _selected(session, selected)
            people = progress.monitor(session, here, definitions.of(here), data)
            yield from responses_csv(session, study, data, people.excluded_pseudonyms)

    name = f"{study.slug}-{study.version}-{data}.csv"
    return StreamingResponse(
        lines(),
        media_type="text/csv; charset=utf-8",
        headers={"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"},
    )


@researcher.post("/results/{slug}/unmask")
def unmask(selected: Selected, db: Db) -> Response:
    """Show the comparisons before the target N; when, and at how many participants, is kept for ever."""
    with db.write() as session:
        found = _results(session, selected)
        if found.masked:
            session.add(
                Unmasking(
                    study_id=found.study.id, simulated=found.data == "simulated", at=now(), n=found.included
                )
            )
            session.commit()
    return RedirectResponse(
        f"/results/{selected.slug}?version={found.study.version}&data={found.data}", status_code=303
    )


def _selected(session: Session, selected: Which) -> tuple[Study, Data]:
    if selected.version:
        study = session.scalar(
            select(Study).where(Study.slug == selected.slug, Study.sha256.startswith(selected.version))
        )
    else:
        study = definitions.active(session, selected.slug)
    if study is None:
        raise Refusal(404, f"There is no such study or version here: {selected.slug!r}.")
    return study, selected.data or progress.default_data(session, study)


def _results(session: Session, selected: Which) -> Results:
    return results.compute(session, *_selected(session, selected))


def _not_asked(definition: Definition) -> frozenset[str]:
    """The outcomes that this study does not ask about."""
    return frozenset(outcome for outcome in OUTCOMES if not definition.asks(outcome))


def _notes(pack: PackResults) -> list[str]:
    """What the intervals of a pack cannot account for, each once."""
    models: dict[str, list[str]] = {}
    for model, rates in pack.models.items():
        for reason in dict.fromkeys(r.reason for r in rates.values() if r.n and r.reason):
            models.setdefault(reason, []).append(model.replace("_", " "))
    return [
        reason if len(named) == len(pack.models) else f"{', '.join(named)}: {reason}"
        for reason, named in models.items()
    ]


router.include_router(researcher)
