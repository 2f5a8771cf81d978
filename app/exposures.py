"""How often each stimulus has been shown, which decides what the next participant sees."""

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import String, bindparam, case, cast, literal, select
from sqlalchemy.orm import Session

from app.models import Participant, Response, Trial

# An unfinished session this long silent no longer holds its images. Longer, and a rush of arrivals with many
# dropouts leaves images unevenly answered; one who comes back later still finds the same images.
ABANDONED_AFTER = timedelta(minutes=30)
AT_ONCE = 500  # participants read by one statement

# Whoever may still be at it holds all their images, whatever they have answered; of the others the answers count,
# and those change only when they are seen again.
_PRESENT = "present: "  # and who: SQLite gives an id that was deleted again
_PEOPLE = select(
    Participant.id,
    case(
        (Participant.last_seen_at > bindparam("since"), literal(_PRESENT) + Participant.pseudonym),
        else_=cast(Participant.last_seen_at, String),
    ),
).where(
    Participant.study_id == bindparam("study"),
    Participant.simulated == bindparam("simulated"),
    Participant.withdrawn_at.is_(None),
)
_TRIALS = (
    select(Trial.participant_id, Trial.stimulus_id, Response.trial_id)
    .outerjoin(Response, Response.trial_id == Trial.id)
    .where(Trial.participant_id.in_(bindparam("people", expanding=True)), Trial.kind == "main")
)


@dataclass
class _Counted:
    """What one study's participants count for: id -> (as they were last seen, their stimuli); and the sum."""

    people: dict[int, tuple[str, "array[int]"]] = field(default_factory=dict)
    shown: Counter[int] = field(default_factory=Counter)

    def forget(self, participants: Sequence[int]) -> None:
        for participant in participants:
            _, stimuli = self.people.pop(participant, ("", array("q")))
            self.shown.subtract(stimuli)

    def add(self, participant: int, seen: str, stimuli: "array[int]") -> None:
        self.people[participant] = seen, stimuli
        self.shown.update(stimuli)


class Exposures:
    """Counts that are remembered between sessions, some 400 bytes a participant; only who changed is read again.

    Counting anew took a quarter of a second at 5,000 sessions, for which all answers waited
    (`python -m benchmarks.beginning`). For one thread at a time for each study: whoever begins a session locks it.
    """

    def __init__(self) -> None:
        self._studies: dict[tuple[int, bool], _Counted] = {}

    def count(self, session: Session, study_id: int, simulated: bool, now: datetime) -> dict[int, int]:
        """Stimulus id -> how often it was answered, or assigned to somebody who may still be at it; if ever."""
        counted = self._studies.setdefault((study_id, simulated), _Counted())
        asked = {"study": study_id, "simulated": simulated, "since": now - ABANDONED_AFTER}
        people: dict[int, str] = dict(session.execute(_PEOPLE, asked).all())
        counted.forget([id for id in counted.people if id not in people])
        changed = [
            id for id, seen in people.items() if id not in counted.people or counted.people[id][0] != seen
        ]
        counted.forget(changed)
        for start in range(0, len(changed), AT_ONCE):
            read: dict[int, array[int]] = {id: array("q") for id in changed[start : start + AT_ONCE]}
            for participant, stimulus, answered in session.execute(_TRIALS, {"people": list(read)}):
                if stimulus is not None and (
                    answered is not None or people[participant].startswith(_PRESENT)
                ):
                    read[participant].append(stimulus)
            for participant, stimuli in read.items():
                counted.add(participant, people[participant], stimuli)
        return {stimulus: n for stimulus, n in counted.shown.items() if n}
