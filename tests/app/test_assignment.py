"""Which images a participant sees: every rule of DESIGN, on random packs and counts."""

import itertools
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.assignment import Assignment, Candidate, assign
from app.exposures import ABANDONED_AFTER

LABELS = "0123456789"
MODELS = ("undefended", "distilled", "gradient_regularized")


def candidates(packs: int = 1, sources: int = 3, targets: int = 3) -> list[Candidate]:
    ids = itertools.count(1)
    return [
        Candidate(next(ids), f"pack-{p}", model, 100 * i + source, label, LABELS[(i + t) % 10])
        for p in range(packs)
        for i, label in enumerate(LABELS)
        for source in range(sources)
        for t in range(1, targets + 1)
        for model in MODELS
    ]


def draw(pool: list[Candidate], shown: dict[int, int], seed: int = 1, number: int = 1) -> Assignment:
    return assign(
        seed, number, pool, shown, clean_pool=range(900, 910), practice=2, grids=("p/b", "p/a", "p/c")
    )


@given(
    seed=st.integers(0, 2**63),
    number=st.integers(1, 10**6),
    packs=st.integers(1, 3),
    history=st.integers(0, 2**32),
)
def test_every_rule_on_any_history(seed: int, number: int, packs: int, history: int) -> None:
    pool, counts = candidates(packs), random.Random(history)
    shown = {c.id: counts.randrange(4) for c in pool if counts.random() < 0.8}
    drawn = draw(pool, shown, seed, number)
    by_id = {c.id: c for c in pool}
    chosen = [by_id[i] for i in drawn.labelling]

    assert Counter((c.source_label, c.model) for c in chosen) == dict.fromkeys(
        itertools.product(LABELS, MODELS), 1
    )
    assert len({(c.pack, c.source_index) for c in chosen}) == 30, "no source image twice"
    assert sorted(drawn.judging) == sorted(drawn.labelling)
    assert len(set(drawn.practice)) == 2
    assert sorted(drawn.grids) == ["p/a", "p/b", "p/c"]

    of_pair = Counter[tuple[str, int, str]]()
    for c in pool:
        of_pair[c.pack, c.source_index, c.target_label] += shown.get(c.id, 0)
    used: set[tuple[str, int]] = set()
    for c in chosen:  # in the order in which they were chosen
        left = [
            o
            for o in pool
            if (o.source_label, o.model, o.pack) == (c.source_label, c.model, c.pack)
            and (o.pack, o.source_index) not in used
        ]
        least = [o for o in left if shown.get(o.id, 0) == min(shown.get(o.id, 0) for o in left)]
        assert c in least, "least shown first"

        def by_other_models(o: Candidate) -> int:
            return of_pair[o.pack, o.source_index, o.target_label] - shown.get(o.id, 0)

        assert by_other_models(c) == max(by_other_models(o) for o in least), "ties to pairs others have shown"
        used.add((c.pack, c.source_index))


@given(seed=st.integers(0, 2**32), number=st.integers(1, 1000), order=st.integers(0, 2**32))
def test_it_can_be_recomputed(seed: int, number: int, order: int) -> None:
    pool = candidates()
    shuffled = list(pool)
    random.Random(order).shuffle(shuffled)
    assert draw(pool, {}, seed, number) == draw(shuffled, {}, seed, number)


def test_a_known_draw_never_changes() -> None:
    """The record of past studies depends on it: a change here is a change of the method."""
    drawn = draw(candidates(), {}, seed=20180207, number=1)
    assert drawn.labelling[:5] == (105, 196, 89, 152, 250)
    assert drawn.judging[:5] == (152, 36, 250, 16, 20)
    assert drawn.practice == (908, 902)


def test_participants_get_different_orders() -> None:
    pool = candidates()
    assert len({draw(pool, {}, number=n).labelling for n in range(50)}) == 50
    assert len({draw(pool, {}, seed=s).labelling for s in range(50)}) == 50


def test_exposures_stay_balanced() -> None:
    """Within a cell no stimulus is shown much more often than another, however many take part."""
    pool = candidates(sources=5, targets=9)
    shown: Counter[int] = Counter()
    for number in range(1, 201):
        shown.update(draw(pool, dict(shown), number=number).labelling)
        for cell in itertools.product(LABELS, MODELS) if number % 20 == 0 else ():
            counts = [shown[c.id] for c in pool if (c.source_label, c.model) == cell]
            assert max(counts) - min(counts) <= 2, cell


class Field:
    """A study in minutes: who is at it, what has been answered, and what counts as shown."""

    SILENT = ABANDONED_AFTER.total_seconds() / 60
    A_MINUTE = 4  # images

    def __init__(self, seed: int, dropout: float) -> None:
        self.rng = random.Random(seed)
        self.seed, self.dropout = seed, dropout
        self.pool = candidates(sources=4, targets=3)
        self.cells: dict[tuple[str, str], list[int]] = {}
        for c in self.pool:
            self.cells.setdefault((c.source_label, c.model), []).append(c.id)
        self.now = 0.0
        self.number = 0
        self.answered: Counter[int] = Counter()
        self.present: list[dict[str, Any]] = []

    def shown(self) -> Counter[int]:
        """Answered, or assigned to somebody who was seen lately; the rest have left for good."""
        pending: Counter[int] = Counter()
        stay = []
        for person in self.present:
            done = min(person["stops"], int((self.now - person["began"]) * self.A_MINUTE))
            self.answered.update(person["images"][person["done"] : done])
            person["done"] = done
            if done < 30 and person["began"] + done / self.A_MINUTE > self.now - self.SILENT:
                pending.update(person["images"][done:])
                stay.append(person)
        self.present = stay
        return self.answered + pending

    def arrive(self, after: float) -> tuple[int, int]:
        """One more after so many minutes; the spread of exposures within a cell before and after."""
        self.now += after
        self.number += 1
        shown = self.shown()
        before = self.spread(shown)
        images = draw(self.pool, dict(shown), self.seed, self.number).labelling
        stops = self.rng.randrange(30) if self.rng.random() < self.dropout else 30
        self.present.append({"began": self.now, "images": images, "done": 0, "stops": stops})
        shown.update(images)
        return before, self.spread(shown)

    def spread(self, counts: Counter[int]) -> int:
        return max(max(counts[i] for i in ids) - min(counts[i] for i in ids) for ids in self.cells.values())


@settings(max_examples=8)
@given(
    seed=st.integers(0, 2**32),
    dropout=st.sampled_from([0.0, 0.3, 0.8]),
    rushes=st.lists(
        st.tuples(st.integers(1, 120), st.sampled_from([0.0, 0.05, 1.0, 20.0])), min_size=2, max_size=4
    ),
)
@example(seed=67201, dropout=0.8, rushes=[(22, 20.0), (50, 1.0)])  # from 3 to 4
def test_dropouts_and_rushes_leave_exposures_balanced(
    seed: int, dropout: float, rushes: list[tuple[int, float]]
) -> None:
    """Arrivals only ever even out: whole classes at once, trickles, most of whom may leave in the middle."""
    field = Field(seed, dropout)
    worst = 0
    for people, minutes_apart in rushes:
        for _ in range(people):
            before, after = field.arrive(field.rng.expovariate(1 / minutes_apart) if minutes_apart else 0.0)
            # 2 from the draw; more where a participant has met the source images of the least shown already: 4 was
            # seen once in 399 random fields, where most leave in the middle.
            assert after <= max(4, before), "no arrival makes a balanced cell uneven"
            worst = max(worst, after)
    field.now += 2 * Field.SILENT  # all have finished or given up
    left = field.spread(field.shown())
    field.dropout = 0.0
    for _ in range(12 * left):  # a cell has 12 images: each of those that are behind is next
        field.arrive(10.0)
    field.now += 2 * Field.SILENT
    assert field.spread(field.shown()) <= 3, (left, worst)


def test_the_models_are_compared_on_the_same_pairs() -> None:
    """Of the pairs shown for one model most are shown for the others: that is what the tie rule is for."""
    pool = candidates(sources=5, targets=9)
    by_id = {c.id: c for c in pool}
    shown: Counter[int] = Counter()
    for number in range(1, 21):
        shown.update(draw(pool, dict(shown), number=number).labelling)
    pairs = {
        model: {
            (by_id[i].source_index, by_id[i].target_label)
            for i, n in shown.items()
            if n and by_id[i].model == model
        }
        for model in MODELS
    }
    common = set.intersection(*pairs.values())
    by_chance = 45 * (20 / 45) ** 3 * 10  # three independent draws of 20 of a digit's 45 pairs, for 10 digits
    assert len(common) > 1.2 * by_chance, (len(common), by_chance)


def test_packs_are_drawn_at_random() -> None:
    pool = candidates(packs=2)
    by_id = {c.id: c for c in pool}
    first = sum(
        by_id[i].pack == "pack-0" for number in range(100) for i in draw(pool, {}, number=number).labelling
    )
    assert 1300 < first < 1700, "3000 fair coins: 200 are more than 7 standard deviations"


def test_a_cell_without_a_stimulus_left_is_an_error() -> None:
    with pytest.raises(ValueError, match="no stimulus left for label"):
        draw(candidates(sources=2), {})


@given(
    controls=st.integers(0, 8),
    practice=st.integers(0, 2),
    seed=st.integers(0, 2**32),
    number=st.integers(1, 99),
)
def test_control_images_come_anywhere_and_change_nothing_else(
    controls: int, practice: int, seed: int, number: int
) -> None:
    pool = candidates()
    grids = ("p/a", "p/b")
    plain = assign(seed, number, pool, {}, range(900, 910), practice, grids)
    drawn = assign(seed, number, pool, {}, range(900, 910), practice, grids, controls=controls)
    assert (drawn.labelling, drawn.judging, drawn.grids) == (plain.labelling, plain.judging, plain.grids)
    places = [place for place, _ in drawn.controls]
    images = [image for _, image in drawn.controls]
    assert len(places) == controls
    assert places == sorted(set(places)), "in order, never two in one place"
    assert all(1 <= place <= 30 for place in places)
    assert len({*images, *drawn.practice}) == controls + practice, "no clean image twice"


def test_grids_come_pack_by_pack_and_each_order_of_packs_and_models_is_as_likely() -> None:
    grids = [f"{pack}/{model}" for pack in ("p", "q") for model in MODELS]
    pool = candidates(2, targets=1)
    orders = Counter(
        assign(1, number, pool, {}, range(900, 910), 0, grids).grids for number in range(1, 1441)
    )
    assert {len({grid[0] for grid in order[:3]}) for order in orders} == {1}, "one pack, then the other"
    assert {frozenset(order) for order in orders} == {frozenset(grids)}
    assert len(orders) == 2 * 6 * 6, "every order of two packs and of three models in each"
    assert 6 <= min(orders.values()) <= max(orders.values()) <= 38, "20 expected of each, four sigma about it"


def test_too_few_clean_images_is_an_error() -> None:
    with pytest.raises(ValueError, match="larger than population"):
        assign(1, 1, candidates(), {}, range(900, 903), 2, ("p/a",), controls=2)
