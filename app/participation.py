"""One participant's way through a study: where they are, and what comes next."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from sqlalchemy import Row, bindparam, select
from sqlalchemy.orm import Session, joinedload

from app import definition as definitions
from app.definition import Definition
from app.i18n import N_, SOURCE, translate
from app.models import Judgment, Pack, Participant, Response, Stimulus, Study, StudyPack, Trial

State = Literal["labelling", "judging", "commenting", "finished", "withdrawn"]

ALPHABET = "23456789ABCDEFGHJKLMNPQRSTUVWXYZ"  # no 0/O, 1/I: pseudonyms and codes get read aloud


class Refusal(Exception):
    """A request that must not be carried out: HTTP status, one sentence, and what else the client should know.

    The sentence is a text of the catalogs; `values` fill its %(names)s.
    """

    def __init__(
        self, status: int, message: str, values: Mapping[str, object] | None = None, **more: Any
    ) -> None:
        self.status = status
        self.message = message
        self.values = values or {}
        self.more = more
        super().__init__(self.detail)

    @property
    def detail(self) -> str:
        """The sentence in English, for programs."""
        return translate(SOURCE, self.message, **self.values)


def questions_of(definition: Definition, runner_up_first: bool) -> list[str]:
    """The study's questions in the order in which one participant is asked."""
    asked: list[str] = list(definition.questions)
    if "runner_up" in asked:
        first, second = sorted((asked.index("label"), asked.index("runner_up")))
        pair = ("runner_up", "label") if runner_up_first else ("label", "runner_up")
        asked[first], asked[second] = pair
    return asked


@dataclass(frozen=True)
class TrialView:
    id: int
    position: int
    kind: str
    sha256: str
    labelled: bool
    judged: bool
    judging_order: int | None
    prediction: str | None


@dataclass(frozen=True)
class SessionView:
    """All that the participant's pages and API are made from."""

    participant: Participant
    study: Study
    definition: Definition
    labels: list[str]
    trials: list[TrialView] = field(repr=False)
    state: State

    @property
    def questions(self) -> list[str]:
        """The questions in the order in which this participant is asked."""
        return questions_of(self.definition, self.participant.runner_up_first)

    @property
    def next_position(self) -> int | None:
        if self.state == "labelling":
            return next(t.position for t in self.trials if not t.labelled)
        if self.state == "judging":
            return min(self._unjudged(), key=lambda t: t.judging_order or 0).position
        return None

    @property
    def order(self) -> list[int]:
        """The positions of the present part as they come; none outside of labelling and judging."""
        if self.state == "labelling":
            return [t.position for t in self.trials]
        if self.state == "judging":
            judged = [(t.judging_order, t.position) for t in self.trials if t.judging_order is not None]
            return [position for _, position in sorted(judged)]
        return []

    def trial(self, position: int) -> TrialView:
        for trial in self.trials:
            if trial.position == position:
                return trial
        raise Refusal(
            404,
            N_("This session has no image %(position)s; it has images 1 to %(last)s."),
            {"position": position, "last": len(self.trials)},
        )

    def progress(self) -> tuple[int, int]:
        """(which image of this phase comes now, of how many); practice counts apart."""
        if self.state == "judging":
            judged = [t for t in self.trials if t.judging_order is not None]
            return sum(t.judged for t in judged) + 1, len(judged)
        practicing = any(t.kind == "practice" and not t.labelled for t in self.trials)
        counted = [t for t in self.trials if (t.kind == "practice") == practicing]
        return sum(t.labelled for t in counted) + 1, len(counted)

    @property
    def pause_is_due(self) -> bool:
        """Whether a block of the study's `pause_after` images has just ended and more are to come."""
        number, total = self.progress()
        every = self.definition.pause_after
        in_part = self.state == "judging" or self.trial(self.next_position or 1).kind != "practice"
        return bool(every and in_part and 1 < number <= total and (number - 1) % every == 0)

    def with_answer(self, trial: TrialView) -> "SessionView":
        """What it is once this trial is answered in the present part; the predictions are as they were."""
        answered = replace(trial, labelled=True, judged=self.state == "judging")
        trials = [answered if t.position == trial.position else t for t in self.trials]
        return replace(self, trials=trials, state=_state(self.participant, trials))

    def _unjudged(self) -> list[TrialView]:
        return [t for t in self.trials if t.judging_order is not None and not t.judged]


# Put together once, as each answer asks them: putting them together took as long as asking.
_PARTICIPANT = (
    select(Participant)
    # Without its definition, some 10 KB of JSON that `definitions.of` remembers.
    .options(joinedload(Participant.study, innerjoin=True).defer(Study.definition))
    .where(Participant.token == bindparam("token"))
)
_LOCKED = _PARTICIPANT.with_for_update(of=Participant)
_TRIALS = (
    select(
        Trial.id,
        Trial.position,
        Trial.kind,
        Trial.sha256,
        Response.trial_id,
        Judgment.trial_id,
        Trial.judging_order,
        Stimulus.prediction,
    )
    .outerjoin(Response, Response.trial_id == Trial.id)
    .outerjoin(Judgment, Judgment.trial_id == Trial.id)
    .outerjoin(Stimulus, Stimulus.id == Trial.stimulus_id)
    .where(Trial.participant_id == bindparam("participant"))
    .order_by(Trial.position)
)
_LABELS = (
    select(Pack.labels)
    .join(StudyPack, StudyPack.pack_id == Pack.id)
    .where(StudyPack.study_id == bindparam("study"))
)


def view(session: Session, token: str, lock: bool = False) -> SessionView:
    """Where the participant with this token is. `lock` holds the row until the transaction ends."""
    participant = session.scalar(_LOCKED if lock else _PARTICIPANT, {"token": token})
    if participant is None:
        raise Refusal(404, N_("This link belongs to no session; please use the link you were given, whole."))
    study = participant.study
    definition = definitions.of(study)
    rows = session.execute(_TRIALS, {"participant": participant.id}).all()
    labelling_over = all(row[4] is not None for row in rows)
    trials = [_trial_view(row, labelling_over) for row in rows]
    return SessionView(
        participant, study, definition, _labels_of(session, study), trials, _state(participant, trials)
    )


def _labels_of(session: Session, study: Study) -> list[str]:
    found = _labels.get(study.sha256)
    if found is None:
        found = _labels[study.sha256] = session.scalar(_LABELS, {"study": study.id}) or []
    return list(found)


_labels: dict[str, list[str]] = {}  # by the study's hash, in which its packs' are


def _state(participant: Participant, trials: list[TrialView]) -> State:
    return state_of(
        participant.withdrawn_at is not None,
        participant.finished_at is not None,
        to_label=len(trials),
        labelled=sum(t.labelled for t in trials),
        to_judge=sum(t.judging_order is not None for t in trials),
        judged=sum(t.judged for t in trials),
    )


def _trial_view(row: Row[*tuple[Any, ...]], labelling_over: bool) -> TrialView:
    id, position, kind, sha256, response, judgment, judging_order, prediction = row
    return TrialView(
        id=id,
        position=position,
        kind=kind,
        sha256=sha256,
        labelled=response is not None,
        judged=judgment is not None,
        judging_order=judging_order,
        # No answer of the network's may teach before the last image is labelled.
        prediction=prediction if labelling_over and judging_order is not None else None,
    )


def state_of(
    withdrawn: bool, finished: bool, to_label: int, labelled: int, to_judge: int, judged: int
) -> State:
    """Where a participant is, from the counts of their trials; for their own pages and the researcher's monitor."""
    if withdrawn:
        return "withdrawn"
    if finished:
        return "finished"
    if labelled < to_label:
        return "labelling"
    return "judging" if judged < to_judge else "commenting"
