"""A population of participants and images that answers by chance, and studies drawn from it.

What power, calibration and rehearsal stand on.

On the logit scale an answer's chance of the outcome is the model's base rate plus six independent normal effects:
of the participant, of the participant's preference for the model, of the source image, of the source image under
the model, of the (source image, target) pair whatever the model, and of the pair under the model. Base rates are
given as what people see: the average over new participants and new images (`intercept`).
"""

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np
import numpy.typing as npt
import scipy
from tqdm import tqdm

from app.assignment import Candidate, assign
from ml.pack import Pack

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

MOST = 10.0  # a standard deviation of effects, in logits: beyond, nearly all answers are certain

# A grid for averages over a standard normal: for a smooth function the trapezoidal rule is exact to rounding.
_Z = np.linspace(-12, 12, 1201)
_WEIGHTS = np.exp(-_Z * _Z / 2) / np.exp(-_Z * _Z / 2).sum()


@dataclass(frozen=True)
class Spread:
    """Standard deviations of the random effects, in logits, each from 0 to MOST.

    The defaults are assumptions, not estimates: nobody has published them for this kind of study. They take
    images for more different than people are, as in most rating experiments, and preferences for a model for a
    little smaller than differences in strictness. At a rate of 0.3 an effect of 0.5 moves it by about 0.1.
    """

    participant: float = 0.5  # some find nearly everything reasonable, others nearly nothing
    participant_model: float = 0.4  # a participant's preference for one model's mistakes
    image: float = 0.4  # a scrawled original is easier to mistake
    image_model: float = 0.3  # ... and that more so under one model
    pair: float = 0.8  # from a 4 to a 9 is a shorter way than from a 4 to a 0
    pair_model: float = 0.6  # what this one example came out like

    def __post_init__(self) -> None:
        for name, sd in vars(self).items():
            if not 0 <= sd <= MOST:
                raise ValueError(
                    f"the spread of {name.replace('_', ' x ')} is {sd}; it lies between 0 and {MOST:g}"
                )

    @property
    def total(self) -> float:
        """The standard deviation of all effects of one answer together."""
        return math.hypot(*astuple(self))


NO_SPREAD = Spread(0, 0, 0, 0, 0, 0)


def average(center: float, sd: float) -> float:
    """The mean of expit(center + sd * Z) over a standard normal Z: a rate in [0, 1]; sd from 0 to MOST * 3."""
    return float(_WEIGHTS @ scipy.special.expit(center + sd * _Z))


def intercept(rate: float, sd: float) -> float:
    """The logit at which `average(logit, sd)` is `rate`; rates 0 and 1 give -inf and inf.

    With sd = Spread.total it is a model's base logit for a rate over all participants and images.
    Raises ValueError for a rate outside [0, 1].
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"{rate} is not a rate: it lies between 0 and 1")
    center = float(scipy.special.logit(rate))
    if sd == 0 or math.isinf(center):
        return center
    # Within 12 standard deviations, and one logit further, all of the grid lies on one side of the rate.
    reach = 12 * sd + 1
    found: float = scipy.optimize.brentq(
        lambda b: average(b, sd) - rate, center - reach, center + reach, xtol=1e-13
    )
    return found


def draw_participants(
    rng: np.random.Generator, replicates: int, participants: int, models: int, spread: Spread
) -> Floats:
    """Effects of participants, preferences in them, in logits: shape (replicates, participants, models)."""
    strictness = rng.normal(0, spread.participant, (replicates, participants, 1))
    preference = rng.normal(0, spread.participant_model, (replicates, participants, models))
    return np.asarray(strictness + preference)


def draw_images(
    rng: np.random.Generator, replicates: int, sources: Ints, models: int, spread: Spread
) -> Floats:
    """Effects of (source image, target) pairs, in logits: shape (replicates, pairs, models).

    `sources`, of shape (pairs,), names the source image of every pair: pairs of one image share its effects.
    """
    names, of_pair = np.unique(sources, return_inverse=True)
    image = rng.normal(0, spread.image, (replicates, names.size, 1))
    image_model = rng.normal(0, spread.image_model, (replicates, names.size, models))
    pair = rng.normal(0, spread.pair, (replicates, sources.size, 1))
    pair_model = rng.normal(0, spread.pair_model, (replicates, sources.size, models))
    return np.asarray((image + image_model)[:, of_pair] + pair + pair_model)


def chances(base: Floats, people: Floats, images: Floats) -> Floats:
    """Chance of the outcome from a base logit and the two effects, which broadcast; base -inf gives 0, inf 1."""
    return np.asarray(scipy.special.expit(base + people + images))


@dataclass(frozen=True)
class Design:
    """Who sees which (source image, target) pair of one pack, under two models.

    `pair`, of shape (designs, participants, labels, 2), indexes `source` and `weight`, or is -1 where the cell
    shows another pack's image; the last axis is the two models. `source`, of shape (pairs,), numbers the source
    images from 0, and `weight` is each pair's share of what is shown in the long run.
    """

    pair: Ints
    source: Ints
    weight: Floats


def candidates(packs: Sequence[Pack]) -> list[Candidate]:
    """Every stimulus of the packs, as the assignment takes them."""
    stimuli = [(pack.name, s) for pack in packs for s in pack.stimuli]
    return [
        Candidate(i, pack, s.model, s.source_index, s.source_label, s.target_label)
        for i, (pack, s) in enumerate(stimuli)
    ]


def design(
    candidates: Sequence[Candidate],
    pack: str,
    models: tuple[str, str],
    participants: int,
    designs: int,
    seed: int,
    progress: bool = False,
) -> Design:
    """As many complete assignments of as many participants, one after the other, as a study makes them.

    The first participants of an assignment are those of a smaller study. Raises ValueError where the pack lacks a
    model, and where the candidates do not suffice.
    """
    if models[0] == models[1]:
        raise ValueError(f"the two models are both {models[0]!r}; a difference needs two models")
    of_pack = [c for c in candidates if c.pack == pack and c.model in models]
    if missing := [m for m in models if not any(c.model == m for c in of_pack)]:
        has = ", ".join(sorted({c.model for c in candidates if c.pack == pack}))
        raise ValueError(f"the pack {pack} has no model {missing[0]!r}; it has {has}")
    by_id = {c.id: c for c in of_pack}
    labels = sorted({c.source_label for c in candidates})
    label_of = {(c.source_index, c.target_label): c.source_label for c in of_pack}
    index = {pair: i for i, pair in enumerate(sorted(label_of))}
    pair = np.full((designs, participants, len(labels), 2), -1, np.int64)
    with tqdm(total=designs * participants, desc="assigning", disable=not progress, leave=False) as bar:
        for d in range(designs):
            shown: dict[int, int] = {}
            for p in range(participants):
                for stimulus in assign(seed * 1000 + d, p + 1, candidates, shown, (), 0, ()).labelling:
                    shown[stimulus] = shown.get(stimulus, 0) + 1
                    if (c := by_id.get(stimulus)) is not None:
                        slot = labels.index(c.source_label), models.index(c.model)
                        pair[d, p, *slot] = index[c.source_index, c.target_label]
                bar.update()
    in_label = {label: list(label_of.values()).count(label) for label in labels}
    return Design(
        pair,
        np.unique([source for source, _ in index], return_inverse=True)[1].astype(np.int64),
        np.array([1 / in_label[label_of[p]] for p in index]) / len(set(label_of.values())),
    )


def draw_answers(
    rng: np.random.Generator,
    design: Design,
    which: Ints,
    base: Floats,
    spread: Spread,
    images: Floats | None = None,
) -> Bools:
    """Outcomes of simulated studies, shape (replicates, participants, labels, 2); False where not shown.

    `which`, of shape (replicates,), says which of the designs each follows. `base` are the models' logits, which
    broadcast to (replicates, 1, 1, 2); `images` replaces freshly drawn effects (replicates, pairs, 2).
    """
    pair = design.pair[which]
    replicates, participants = pair.shape[:2]
    if images is None:
        images = draw_images(rng, replicates, design.source, 2, spread)
    people = draw_participants(rng, replicates, participants, 2, spread)
    effects = images[np.arange(replicates)[:, None, None, None], pair, np.arange(2)]
    chance = chances(base, people[:, :, None, :], effects)
    return np.asarray((rng.random(chance.shape) < chance) & (pair >= 0))
