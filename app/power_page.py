"""The researcher's page before launch: how many participants the primary comparison needs."""

import math
from dataclasses import dataclass, fields

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse, Response

from app import auth, enrollment, printed
from app import definition as definitions
from app.assignment import Candidate
from app.definition import Definition
from app.outcomes import OUTCOMES
from app.participation import Refusal
from app.population import Spread, design
from app.power import (
    MOST_PARTICIPANTS,
    Power,
    bound,
    curve,
    detectable,
    detectable_said,
    paper_rate,
    rule,
    smallest,
)
from app.power_figure import figure
from app.web import Db, render

router = APIRouter(dependencies=[Depends(auth.require_researcher)])

USUAL = (6, 10, 15, 20, 25, 30, 40, 50)
MOST_NUMBERS = 12  # rows of the table
MOST_TOGETHER = (
    1000  # the sum of the numbers: what is simulated takes about three seconds at most (looks: six)
)
ANSWERING = 40_000  # participants simulated for a page: about a second
TESTED = 200_000  # participants of all sizes that are tested, looks too
FEWEST = 100  # simulated studies of each size
DETECTING = 400  # simulated studies at each step towards the smallest detectable difference
MOST_DETECTING = 150  # participants in the target's looks: more would take seconds
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


@dataclass(frozen=True)
class Simulated:
    """What the page says of it."""

    asked: Asked
    powers: list[Power]
    replicates: int
    least: Power | None  # of the fewest participants with the power wanted
    looks: list[tuple[int, float]]  # declared for the target, where it is simulated: participants, boundary
    detectable: str | None  # a sentence, where the target is simulated
    chart: str


@router.get("/results/{slug}/power", response_class=HTMLResponse, include_in_schema=False)
def power_page(request: Request, slug: str, db: Db) -> Response:
    with db.read() as session:
        study = definitions.active(session, slug)
        if study is None:
            raise Refusal(404, f"There is no such study here: {slug!r}.")
        definition = definitions.of(study)
        shown = enrollment.candidates_of(session, [link.pack_id for link in study.packs])
    primary = definition.primary
    form = _defaults(definition)
    form |= {name: value for name, value in request.query_params.items() if name in form}
    problem, simulated = None, None
    try:
        simulated = _simulate(list(shown.values()), definition, _read(form))
    except ValueError as error:
        problem = str(error)
    return render(
        request,
        "power.html",
        200 if problem is None else 422,
        slug=slug,
        definition=definition,
        outcome=OUTCOMES[primary.outcome],
        form=form,
        simulated=simulated,
        spreads=SPREADS,
        problem=problem,
        printed=printed,
        bound=bound,
        several=len(definition.packs) > 1,
    )


def _simulate(candidates: list[Candidate], definition: Definition, asked: Asked) -> Simulated:
    """Raises ValueError for what cannot be simulated."""
    primary, looks, target = definition.primary, definition.look_sizes, definition.target_participants
    most = asked.participants[-1]
    tests = {n: rule(n, looks=looks) for n in asked.participants}
    together = sum({n for each in tests.values() for n, _ in each})
    replicates = max(FEWEST, min(1000, ANSWERING // most, TESTED // together))
    drawn = design(candidates, primary.pack, (primary.a, primary.b), most, max(1, min(5, 300 // most)), SEED)
    numbers = asked.rates, asked.spread
    powers = curve(drawn, *numbers, asked.participants, replicates, SEED, looks=looks)
    nearest = None
    if target in tests and sum(n for n, _ in tests[target]) <= MOST_DETECTING:
        few = min(DETECTING, replicates)
        rate = detectable(drawn, *numbers, target, asked.wanted, few, SEED, looks=looks)
        nearest = detectable_said(asked.rates, rate, target, asked.wanted)
    return Simulated(
        asked=asked,
        powers=powers,
        replicates=replicates,
        least=smallest(powers, asked.wanted),
        looks=tests.get(target, []) if definition.looks else [],
        detectable=nearest,
        chart=figure(powers, asked.wanted, "Power over the number of participants", inline=True),
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
