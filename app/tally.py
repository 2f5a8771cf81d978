"""What participants' answers add to the results: whole numbers, so that adding and taking away leave no trace.

Every estimate is a function of such sums over participants. So a participant who has changed costs what their own
answers cost, however many others there are, and the sums are the same as if all were added anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from app import outcomes
from app.clusters import Clustered, Clusters, Ints, products
from app.observations import ScoredAnswers, Seen, Stimuli, columns, scored
from app.outcomes import COMPARED, COMPONENTS, NONE, NOT_ASKED, OUTCOMES, PLACEBOS

NUMBERS = (*OUTCOMES, *PLACEBOS)
"""Every rate of a model, in the order of the JSON."""

CHUNK = 1000  # participants whose answers are summed at once


@dataclass(frozen=True)
class Frame:
    """What the sums of one pack's answers are sorted by."""

    stimuli: Stimuli
    pack: int  # its place in the study
    models: Sequence[str]
    outcome: str  # the primary one
    compared: Sequence[str]  # the outcomes that models are compared by
    trials: int  # main trials of a session

    def answers(self, people: Sequence[Seen]) -> ScoredAnswers:
        """The pack's answers of some participants, who are numbered 0, 1, ..."""
        found = scored(columns(people), self.stimuli, self.models)
        return found.where(found.pack == self.pack)

    @property
    def images(self) -> int:
        return int(self.stimuli.image.max(initial=-1)) + 1


@dataclass(frozen=True)
class Sums:
    """Sums by name, all of whole numbers; `kinds` counts participants by something else than a small number."""

    arrays: dict[str, Ints]
    kinds: dict[tuple[int, ...], Counter[tuple[int, ...]]]

    def plus(self, other: Sums, sign: int = 1) -> Sums:
        """These and the other's, or with `sign` -1 these less the other's."""
        kinds = {}
        for name, counted in self.kinds.items():
            together = Counter(counted)
            for kind, people in other.kinds[name].items():
                together[kind] += sign * people
                if not together[kind]:
                    del together[kind]
            kinds[name] = together
        return Sums({name: own + sign * other.arrays[name] for name, own in self.arrays.items()}, kinds)


@dataclass(frozen=True, eq=False)
class Running:
    """Sums over some participants. It never changes: other participants give another one."""

    members: Mapping[int, Seen]
    sums: Sums


def brought(
    before: Running | None, members: Mapping[int, Seen], summed: Callable[[Sequence[Seen]], Sums]
) -> Running:
    """The sums over `members`, from those `before` and what differs; `before` itself where nothing does."""
    known = before.members if before else {}
    gone = [own for id_, own in known.items() if members.get(id_) is not own]
    new = [own for id_, own in members.items() if known.get(id_) is not own]
    if before and not gone and not new:
        return before
    if before and len(gone) + len(new) < len(members):
        sums = before.sums
    else:
        sums, gone, new = summed([]), [], list(members.values())
    for sign, people in ((-1, gone), (1, new)):
        for start in range(0, len(people), CHUNK):
            sums = sums.plus(summed(people[start : start + CHUNK]), sign)
    return Running(dict(members), sums)


# All participants who count: rates and views


def summed_rates(frame: Frame, people: Sequence[Seen]) -> Sums:
    """What rates and views are made of: for the names and shapes see `groups`, `rates` and `app.views`."""
    found = frame.answers(people)
    arrays: dict[str, Ints] = {}
    cell, cells = np.unique(found.answers.participant * frame.images + found.image, return_inverse=True)
    several = np.bincount(cells, minlength=len(cell))[cells] > 1  # answers of one participant on one image
    for name, (group, size, chosen) in groups(frame, found).items():
        codes = _codes(found, chosen)
        by_people = _table(codes, found.answers.participant, len(people), group, size)
        arrays[f"{name}.people"] = _moments(by_people)
        arrays[f"{name}.images"] = _counts(_table(codes, found.image, frame.images, group, size))
        alone = ~several
        single = _table(codes[:, alone], np.zeros(int(alone.sum()), np.int64), 1, group[alone], size)
        hits, n = _counts(single)[:, 0].transpose(2, 0, 1)
        among = np.unique(cells[several], return_inverse=True)[1].astype(np.int64)
        arrays[f"{name}.both"] = np.stack([n, hits, hits, n], axis=-1) + _moments(
            _table(codes[:, several], among, int(among.max(initial=-1)) + 1, group[several], size)
        )
    return Sums(arrays | _views(frame, found), {})


def groups(frame: Frame, found: ScoredAnswers) -> dict[str, tuple[Ints, int, Sequence[str]]]:
    """Name -> each answer's group, how many groups there are, and the outcomes that are counted in each."""
    labels, models = len(frame.stimuli.labels), len(frame.models)
    third = np.minimum(found.answers.rank * 3 // frame.trials, 2)
    return {
        "together": (np.zeros_like(found.model), 1, NUMBERS),
        "model": (found.model, models, NUMBERS),
        "third": (found.model * 3 + third, models * 3, COMPARED),
        "source": (found.model * labels + found.source, models * labels, (frame.outcome,)),
        "target": (found.model * labels + found.target, models * labels, (frame.outcome,)),
    }


def rates(sums: Sums, name: str) -> list[list[Clustered]]:
    """The sums of `summed_rates` under a name of `groups`: for each outcome, each group's."""
    images = sums.arrays[f"{name}.images"]
    totals: list[list[list[int]]] = images.sum(axis=1).tolist()
    directions = (
        sums.arrays[f"{name}.people"].tolist(),
        _squares(images).tolist(),
        sums.arrays[f"{name}.both"].tolist(),
    )
    return [
        [
            Clustered(of_group, *(Clusters(g, [[cc, cn], [cn, nn]]) for g, cc, cn, nn in moments))
            for of_group, *moments in zip(of_outcome, *by_group, strict=True)
        ]
        for of_outcome, *by_group in zip(totals, *directions, strict=True)
    ]


def _views(frame: Frame, found: ScoredAnswers) -> dict[str, Ints]:
    labels, models = len(frame.stimuli.labels), len(frame.models)
    own, size = found.answers.stimulus, len(frame.stimuli.sha256)
    of_outcome, fooled, direct = (
        found.outcomes[name] for name in (frame.outcome, "human_fooled", "mistake_reasonable_direct")
    )
    parts = outcomes.components(found.answers.first, found.answers.second, found.source, found.target)
    pair = (found.model * labels + found.source) * labels + found.target
    asked = found.answers.second != NOT_ASKED
    hit = of_outcome.counted & of_outcome.hit
    return {
        "components": np.stack(
            [np.bincount(found.model[parts[name]], minlength=models) for name in COMPONENTS], axis=1
        ),
        "pairs": np.stack(
            [np.bincount(pair[mask], minlength=models * labels**2) for mask in (hit, of_outcome.counted)],
            axis=1,
        ).reshape(models, labels, labels, 2),
        "stimuli": np.stack(
            [
                np.bincount(own[mask], minlength=size)
                for mask in (
                    np.ones_like(fooled.hit),
                    fooled.counted & fooled.hit,
                    hit,
                    of_outcome.counted,
                    direct.counted,
                    direct.counted & direct.hit,
                )
            ],
            axis=1,
        ),
        "first": _named(own, found.answers.first, size, labels),
        "second": _named(own[asked], found.answers.second[asked], size, labels),
    }


def _named(own: Ints, code: Ints, size: int, labels: int) -> Ints:
    """How often each label, and last "none", was given to each stimulus, shape (stimuli, labels + 1)."""
    place = np.where(code == NONE, labels, code)
    return np.bincount(own * (labels + 1) + place, minlength=size * (labels + 1)).reshape(size, labels + 1)


# The complete participants: comparisons


def summed_comparisons(frame: Frame, people: Sequence[Seen]) -> Sums:
    """What comparisons are made of.

    Columns of `products` are count and n of each model. `kinds` says for (place of the outcome, of a model, of a
    later model) how many participants have each (count, n, count, n), neither n being 0.
    """
    found = frame.answers(people)
    models = len(frame.models)
    codes = _codes(found, frame.compared)
    cells = np.unique(found.answers.participant * frame.images + found.image, return_inverse=True)[1]
    by_people = _counts(_table(codes, found.answers.participant, len(people), found.model, models))
    by_image = _counts(_table(codes, found.image, frame.images, found.model, models))
    by_both = _counts(
        _table(codes, cells.astype(np.int64), int(cells.max(initial=-1)) + 1, found.model, models)
    )
    arrays = {"images": by_image}
    for name, table in (("people", by_people), ("both", by_both)):
        wide = table.reshape(len(codes), table.shape[1], 2 * models)
        arrays[f"{name}.products"] = wide.transpose(0, 2, 1) @ wide
        there = table[..., 1] > 0
        arrays[f"{name}.clusters"] = (there[..., :, None] | there[..., None, :]).sum(axis=1)
    kinds: dict[tuple[int, ...], Counter[tuple[int, ...]]] = {
        (k, a, b): _kinds(by_people[k][:, [a, b]])
        for k in range(len(codes))
        for a, b in combinations(range(models), 2)
    }
    return Sums(arrays, kinds)


def compared(sums: Sums, k: int, a: int, b: int) -> Clustered:
    """The sums of `summed_comparisons` for two models, and outcome number k of those compared."""
    chosen = [2 * a, 2 * a + 1, 2 * b, 2 * b + 1]
    images = sums.arrays["images"][k]
    by_image = images.reshape(len(images), 2 * images.shape[1])[:, chosen]
    people, both = (
        Clusters(
            int(sums.arrays[f"{name}.clusters"][k, a, b]),
            sums.arrays[f"{name}.products"][k][np.ix_(chosen, chosen)].tolist(),
        )
        for name in ("people", "both")
    )
    number = int(np.count_nonzero(by_image[:, 1] + by_image[:, 3]))
    return Clustered(by_image.sum(axis=0).tolist(), people, Clusters(number, products(by_image)), both)


def _kinds(table: Ints) -> Counter[tuple[int, ...]]:
    """How many rows of shape (2, 2) have each content, of those that count in both."""
    rows = table[(table[..., 1] > 0).all(axis=1)].reshape(-1, 4)
    base = int(rows.max(initial=0)) + 1
    content, people = np.unique(rows @ base ** np.arange(4), return_counts=True)
    digits = content[:, None] // base ** np.arange(4) % base
    return Counter(dict(zip(map(tuple, digits.tolist()), people.tolist(), strict=True)))


# Tables


def _codes(found: ScoredAnswers, chosen: Sequence[str]) -> Ints:
    """0: does not count, 1: counts, 2: and has the outcome; shape (outcomes, answers)."""
    scores = [found.outcomes[name] for name in chosen]
    codes = [s.counted.astype(np.int64) + (s.counted & s.hit) for s in scores]
    return np.stack(codes) if codes else np.empty((0, found.model.size), np.int64)


def _table(codes: Ints, name: Ints, names: int, group: Ints, groups: int) -> Ints:
    """How many answers have each code, shape (outcomes, names, groups, 3)."""
    row = np.arange(len(codes))[:, None] * names + name
    flat = (row * groups + group) * 3 + codes
    counted = np.bincount(flat.ravel(), minlength=len(codes) * names * groups * 3)
    return counted.reshape(len(codes), names, groups, 3)


def _counts(table: Ints) -> Ints:
    """Count and n, shape (outcomes, names, groups, 2)."""
    return np.stack([table[..., 2], table[..., 1] + table[..., 2]], axis=-1)


def _moments(table: Ints) -> Ints:
    """Of the names of a table, by outcome and group: see `_squares`."""
    return _squares(_counts(table))


def _squares(counts: Ints) -> Ints:
    """How many names have answers, and their sums of count², count n and n², shape (outcomes, groups, 4)."""
    count, n = counts[..., 0], counts[..., 1]
    squares = [n > 0, count * count, count * n, n * n]
    return np.stack([square.sum(axis=1) for square in squares], axis=-1)
