"""Which images a participant sees: balanced, at random, and recomputable.

A pure function of the study's seed, the participant's number and how often each stimulus had been shown by then.
"""

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Candidate:
    """A stimulus that could be shown."""

    id: int
    pack: str
    model: str
    source_index: int
    source_label: str
    target_label: str


@dataclass(frozen=True)
class Assignment:
    """Ids in the order of labelling and of judging, the clean images' ids, and the order of the grids.

    `controls` gives, in order, (how many stimuli come before it, the clean image's id).
    """

    labelling: tuple[int, ...]
    judging: tuple[int, ...]
    practice: tuple[int, ...]
    grids: tuple[str, ...]
    controls: tuple[tuple[int, int], ...]


def assign(
    seed: int,
    number: int,
    candidates: Sequence[Candidate],
    shown: Mapping[int, int],
    clean_pool: Sequence[int],
    practice: int,
    grids: Sequence[str],
    controls: int = 0,
) -> Assignment:
    """One stimulus for each (source label, model) cell, the cells in random order.

    `shown` counts how often each stimulus id has been shown; absent ids count 0. A cell's pack is drawn at random.
    Within a source label no source image comes twice. Among what is left the least-shown stimuli come first; of
    those, the ones whose (source, target) pair the other models have shown most, so that models are compared on the
    same pairs; of those, one at random. Control images stand anywhere among the stimuli, never two in one place
    while there is another. `grids` ("pack/model") come in random order, but pack by pack, as sheets are to be
    compared that show the same kind of image. Raises ValueError where a cell has no stimulus left or the clean
    images do not suffice.
    """
    rng = random.Random(f"{seed}/{number}")  # a string seeds through SHA-512: the same on every machine
    by_cell: dict[tuple[str, str], list[Candidate]] = {}
    pair_shown: dict[tuple[str, int, str], int] = {}
    for candidate in sorted(candidates, key=lambda c: c.id):
        by_cell.setdefault((candidate.source_label, candidate.model), []).append(candidate)
        pair = _pair(candidate)
        pair_shown[pair] = pair_shown.get(pair, 0) + shown.get(candidate.id, 0)

    cells = sorted(by_cell)
    rng.shuffle(cells)
    used: set[tuple[str, int]] = set()
    chosen: list[int] = []
    for cell in cells:
        pack = rng.choice(sorted({c.pack for c in by_cell[cell]}))
        left = [c for c in by_cell[cell] if c.pack == pack and (c.pack, c.source_index) not in used]
        if not left:
            raise ValueError(f"no stimulus left for label {cell[0]!r}, model {cell[1]!r} in pack {pack!r}")

        def rank(c: Candidate) -> tuple[int, int]:
            own = shown.get(c.id, 0)
            return own, -(pair_shown[_pair(c)] - own)

        ranks = [rank(c) for c in left]
        best = min(ranks)
        pick = rng.choice([c for c, its_rank in zip(left, ranks, strict=True) if its_rank == best])
        used.add((pick.pack, pick.source_index))
        chosen.append(pick.id)

    judging = list(chosen)
    rng.shuffle(judging)
    order = sorted(grids)
    rng.shuffle(order)
    clean = rng.sample(sorted(clean_pool), practice + controls)
    return Assignment(
        labelling=tuple(chosen),
        judging=tuple(judging),
        practice=tuple(clean[:practice]),
        grids=_by_pack(order),
        controls=tuple(zip(_places(rng, controls, len(chosen)), clean[practice:], strict=True)),
    )


def _by_pack(grids: Sequence[str]) -> tuple[str, ...]:
    """The grids with each pack's together, packs and a pack's grids in the order in which they came."""
    packs = list(dict.fromkeys(grid.split("/")[0] for grid in grids))
    return tuple(sorted(grids, key=lambda grid: packs.index(grid.split("/")[0])))


def _places(rng: random.Random, controls: int, stimuli: int) -> list[int]:
    """After how many stimuli each control image comes, in order."""
    places: list[int] = []
    while len(places) < controls:
        places += rng.sample(range(1, stimuli + 1), min(controls - len(places), stimuli))
    return sorted(places)


def _pair(candidate: Candidate) -> tuple[str, int, str]:
    return candidate.pack, candidate.source_index, candidate.target_label


def placebo_label(
    seed: int, stimulus: str, source_label: str, target_label: str, labels: Sequence[str]
) -> str:
    """Return a label that is neither source nor target, uniform over the rest and the same for ever.

    The rest, sorted by code point and counted from 0, is indexed by H mod its size. H is the number in the
    first 12 hexadecimal digits (48 bits) of the SHA-256 of this UTF-8 text: "placebo", the seed in decimal,
    stimulus, source label and target label, joined by single newlines. The order of `labels` does not matter.
    Raises ValueError where no label is left.
    """
    rest = sorted(set(labels) - {source_label, target_label})
    if not rest:
        raise ValueError("a placebo needs a label that is neither source nor target")
    text = "\n".join(("placebo", str(seed), stimulus, source_label, target_label))
    return rest[int(hashlib.sha256(text.encode()).hexdigest()[:12], 16) % len(rest)]
