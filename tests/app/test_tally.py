"""Sums that participants are added to and taken from are those of adding all anew, and the statistics' own."""

import random
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app import observations, stats, tally
from app.clusters import Clustered, Ints, Sample
from app.observations import UNDISTURBED, Memory, Seen, Stimuli
from app.outcomes import COMPARED, NONE, NOT_ASKED
from app.tally import Frame, Sums

MODELS = ("undefended", "distilled", "gradient_regularized")
LABELS = 4
IMAGES = 5
TRIALS = 9
several_examples = settings(deadline=None, max_examples=12)


def stimuli() -> Stimuli:
    """Every image altered to every other label for each model, half of them in a second pack."""
    rows = [
        (model, image, image % LABELS, target)
        for model in MODELS
        for image in range(IMAGES)
        for target in range(LABELS)
        if target != image % LABELS
    ]
    size = len(rows)
    image = np.array([row[1] for row in rows])
    return Stimuli(
        labels=tuple(map(str, range(LABELS))),
        row={i: i for i in range(size)},
        clean={},
        sha256=tuple(map(str, range(size))),
        prediction=tuple(str(row[3]) for row in rows),
        probability=np.ones(size),
        pack=np.arange(size) % 2,
        model=tuple(row[0] for row in rows),
        source_index=100 + 7 * image,
        image=image,
        source=np.array([row[2] for row in rows]),
        target=np.array([row[3] for row in rows]),
    )


STIMULI = stimuli()
FRAMES = [Frame(STIMULI, pack, MODELS, "mistake_reasonable", COMPARED, TRIALS) for pack in (0, 1)]


def somebody(seed: int) -> Seen:
    """Up to TRIALS answers by chance, two or more of them often about one source image."""
    rng = random.Random(seed)
    chosen = rng.sample(range(len(STIMULI.sha256)), rng.randint(0, TRIALS))
    ints = [
        (
            stimulus,
            rank,
            rng.choice([*range(LABELS), NONE]),
            rng.choice([*range(LABELS), NONE, NOT_ASKED]),
            rng.randrange(LABELS),
            rng.choice([0, 1, NOT_ASKED]),
        )
        for rank, stimulus in enumerate(chosen)
    ]
    n = len(ints)
    return Seen(
        n, n, n, n, 0, UNDISTURBED, np.array(ints, np.int32).reshape(-1, 6), np.ones((n, 2)) * rng.random()
    )


changes = st.lists(
    st.dictionaries(st.integers(1, 9), st.none() | st.integers(0, 30), max_size=3), min_size=1, max_size=6
)  # at one instant after the other, number -> what they have answered; None: they have gone


@several_examples
@given(changes, st.sampled_from([1, 3, 1000]), st.sampled_from(FRAMES))
def test_who_changes_is_taken_away_and_added_anew(
    instants: list[dict[int, int | None]], chunk: int, frame: Frame
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tally, "CHUNK", chunk)
        for summed in (tally.summed_rates, tally.summed_comparisons):
            summed_here = partial(summed, frame)
            members = {number: somebody(number) for number in range(1, 10)}
            running = tally.brought(None, members, summed_here)
            for instant in instants:
                for number, seed in instant.items():
                    members.pop(number, None)
                    if seed is not None:
                        members[number] = somebody(seed)
                running = tally.brought(running, members, summed_here)
                assert_same(running.sums, summed_here(list(members.values())))
                assert tally.brought(running, dict(members), summed_here) is running


def test_one_who_changed_costs_what_they_answered() -> None:
    asked: list[int] = []

    def summed(people: Sequence[Seen]) -> Sums:
        asked.append(len(people))
        return tally.summed_rates(FRAMES[0], people)

    members = {number: somebody(number) for number in range(50)}
    running = tally.brought(None, members, summed)
    asked.clear()
    tally.brought(running, members | {7: somebody(99), 50: somebody(50)}, summed)
    assert asked == [1, 2], "taken away; added"


def assert_same(found: Sums, expected: Sums) -> None:
    # As plain dictionaries: counters that differ by a count of 0 are equal.
    assert {n: dict(c) for n, c in found.kinds.items()} == {n: dict(c) for n, c in expected.kinds.items()}
    assert found.arrays.keys() == expected.arrays.keys()
    for name, array in expected.arrays.items():
        assert np.array_equal(found.arrays[name], array), name


def samples(frame: Frame, people: list[Seen], outcome: str) -> Iterator[tuple[dict[str, Ints], Sample]]:
    """The answers that count for an outcome, as columns and as a sample with other names of the clusters."""
    found = frame.answers(people)
    counted = found.outcomes[outcome].counted
    columns = {name: group[counted] for name, (group, _, _) in tally.groups(frame, found).items()}
    yield (
        columns,
        Sample.of_answers(
            found.answers.participant[counted] * 3 - 5,
            STIMULI.source_index[found.answers.stimulus[counted]],
            found.outcomes[outcome].hit[counted],
        ),
    )


@several_examples
@given(st.lists(st.integers(0, 500), max_size=12), st.sampled_from(FRAMES))
def test_sums_are_those_of_the_answers_themselves(seeds: list[int], frame: Frame) -> None:
    people = [somebody(seed) for seed in seeds]
    rates, comparisons = tally.summed_rates(frame, people), tally.summed_comparisons(frame, people)
    for name, (_, size, chosen) in tally.groups(frame, frame.answers(people)).items():
        for outcome, by_group in zip(chosen, tally.rates(rates, name), strict=True):
            for columns, sample in samples(frame, people, outcome):
                for group in range(size):
                    assert by_group[group] == Clustered.of(part(sample, columns[name] == group))
    for k, outcome in enumerate(COMPARED):
        for columns, sample in samples(frame, people, outcome):
            for a, b in ((0, 1), (2, 0)):
                expected = Clustered.of(*(part(sample, columns["model"] == model) for model in (a, b)))
                found = tally.compared(comparisons, k, a, b)
                assert found == expected
                assert stats.new_images_test(found) == stats.new_images_test(expected)


def part(sample: Sample, mask: Ints) -> Sample:
    return Sample(*(column[mask] for column in vars(sample).values()))


def test_a_process_keeps_the_studies_that_were_asked_about_last(monkeypatch: pytest.MonkeyPatch) -> None:
    class Version:
        def __init__(self, id_: int) -> None:
            self.id = id_

    memory = Memory()
    for i in (1, 2, 3, 1, 4, 5):
        memory.about(Version(i), "real")["monitor"] = i  # type: ignore[arg-type]
    assert [key for key, _ in memory.kept] == [3, 1, 4, 5]
    assert len(memory.kept) == observations.KEPT
