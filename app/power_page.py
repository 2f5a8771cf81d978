"""The researcher's page before launch: how many participants the primary comparison needs."""

import math
from dataclasses import dataclass, fields

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse, Response
from sqlalchemy import select

from app import auth, printed
from app import definition as definitions
from app.assignment import Candidate
from app.definition import Definition
from app.models import Pack, Stimulus, StudyPack
from app.participation import Refusal
from app.population import Spread, design
from app.power import MOST_PARTICIPANTS, Power, curve, figure, paper_rate, smallest
from app.web import Db, render

router = APIRouter(dependencies=[Depends(auth.require_researcher)])

USUAL = (6, 10, 15, 20, 25, 30, 40, 50)
MOST_NUMBERS = 12  # rows of the table
MOST_TOGETHER = 1000  # the sum of the numbers: what is simulated takes about three seconds at most
ANSWERING = 40_000  # participants simulated for a page: about a second
SEED = 1

SPREADS = {
    "participant": "between participants",
    "participant_model": "in participants’ preference for a model",
    "image": "between source images",
    "image_model": "between source images, for one model only",
    "pair": "between targets of one source image",
    "pair_model": "between single examples",
}


@dataclass(frozen=True)
class Asked:
    """The form, read: rates and power as shares."""

    rates: tuple[float, float]
    participants: list[int]
    wanted: float
    spread: Spread


@router.get("/results/{slug}/power", response_class=HTMLResponse, include_in_schema=False)
def power_page(request: Request, slug: str, db: Db) -> Response:
    with db.read() as session:
        study = definitions.active(session, slug)
        if study is None:
            raise Refusal(404, f"There is no such study here: {slug!r}.")
        definition = definitions.of(study)
        rows = session.execute(
            select(
                Stimulus.id,
                Pack.name,
                Stimulus.model,
                Stimulus.source_index,
                Stimulus.source_label,
                Stimulus.target_label,
            )
            .join(Pack, Pack.id == Stimulus.pack_id)
            .join(StudyPack, StudyPack.pack_id == Pack.id)
            .where(StudyPack.study_id == study.id)
        ).all()
    candidates = [Candidate(*row) for row in rows]
    primary = definition.primary
    form = _defaults(definition)
    form |= {name: value for name, value in request.query_params.items() if name in form}
    problem, asked, powers, replicates = None, None, [], 0
    try:
        asked = _read(form)
        most = asked.participants[-1]
        replicates = max(200, min(1000, ANSWERING // most))
        drawn = design(
            candidates, primary.pack, (primary.a, primary.b), most, max(1, min(5, 300 // most)), SEED
        )
        powers = curve(drawn, asked.rates, asked.spread, asked.participants, replicates, SEED)
    except ValueError as error:
        problem = str(error)
    return render(
        request,
        "power.html",
        200 if problem is None else 422,
        slug=slug,
        definition=definition,
        form=form,
        asked=asked,
        spreads=SPREADS,
        problem=problem,
        powers=powers,
        replicates=replicates,
        least=smallest(powers, asked.wanted) if asked else None,
        chart=_chart(powers, asked.wanted) if asked and powers else None,
        printed=printed,
        several=len(definition.packs) > 1,
    )


def _defaults(definition: Definition) -> dict[str, str]:
    """What the form says at first; without a rate in the paper its field is empty."""
    primary = definition.primary
    numbers = {*USUAL, definition.target_participants}
    form = {
        "participants": " ".join(str(n) for n in sorted(numbers) if n <= MOST_PARTICIPANTS),
        "power": "80",
    }
    for name, model in (("a", primary.a), ("b", primary.b)):
        try:
            form[name] = f"{100 * paper_rate(model, primary.outcome)[1]:g}"
        except ValueError:
            form[name] = ""
    return form | {f"sd_{field.name}": f"{field.default:g}" for field in fields(Spread)}


def _read(form: dict[str, str]) -> Asked:
    """Raises ValueError, with a sentence for the page."""
    rates = [
        _number(form[name], f"The rate of the {which} model", 0, 100) / 100
        for name, which in (("a", "first"), ("b", "second"))
    ]
    words = form["participants"].replace(",", " ").split()
    if not 1 <= len(words) <= MOST_NUMBERS:
        raise ValueError(f"Give 1 to {MOST_NUMBERS} numbers of participants.")
    if not all(
        w.isascii() and w.isdigit() and len(w) < 5 and 2 <= int(w) <= MOST_PARTICIPANTS for w in words
    ):
        raise ValueError(f"Numbers of participants are whole, from 2 to {MOST_PARTICIPANTS}.")
    if sum(map(int, words)) > MOST_TOGETHER:
        raise ValueError(
            f"Numbers of participants come to at most {MOST_TOGETHER} together; ask in several steps."
        )
    wanted = _number(form["power"], "The power wanted", 1, 99) / 100
    spread = {name: _number(form[f"sd_{name}"], f"The spread {what}", 0, 5) for name, what in SPREADS.items()}
    return Asked((rates[0], rates[1]), sorted({int(w) for w in words}), wanted, Spread(**spread))


def _number(text: str, what: str, low: float, high: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise ValueError(f"{what} is a number from {low:g} to {high:g}.")
    return value


def _chart(powers: list[Power], wanted: float) -> str:
    return figure(powers, wanted, "Power over the number of participants", inline=True)
