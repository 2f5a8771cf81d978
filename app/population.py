"""A population of participants and images that answers by chance: what power, calibration and rehearsal stand on.

On the logit scale an answer's chance of the outcome is the model's base rate plus six independent normal effects:
of the participant, of the participant's preference for the model, of the source image, of the source image under
the model, of the (source image, target) pair whatever the model, and of the pair under the model. Base rates are
given as what people see: the average over new participants and new images (`intercept`).
"""

import math
from dataclasses import astuple, dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import expit, logit

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

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
    return float(_WEIGHTS @ expit(center + sd * _Z))


def intercept(rate: float, sd: float) -> float:
    """The logit at which `average(logit, sd)` is `rate`; rates 0 and 1 give -inf and inf.

    With sd = Spread.total it is a model's base logit for a rate over all participants and images.
    Raises ValueError for a rate outside [0, 1].
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"{rate} is not a rate: it lies between 0 and 1")
    center = float(logit(rate))
    if sd == 0 or math.isinf(center):
        return center
    # Within 12 standard deviations, and one logit further, all of the grid lies on one side of the rate.
    reach = 12 * sd + 1
    found: float = brentq(lambda b: average(b, sd) - rate, center - reach, center + reach, xtol=1e-13)
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
    return np.asarray(expit(base + people + images))
