"""How many participants a study needs: simulated studies, put to the very tests that the results page makes.

Each simulated study draws images and participants (`app.population`), assigns images with `app.assignment` and
tests the difference between two models: by the sign-flip test of participants' differences of rates (the
headline) and by the test for new participants and new images. Its power is the share of studies with p <= alpha;
at a study's target, of those in which p is at any declared look at most that look's O'Brien-Fleming boundary.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy
from tqdm import tqdm

from app.bot import PAPER_FOOLED, PAPER_REASONABLE
from app.definition import ALPHA
from app.population import Bools, Design, Floats, Ints, Spread, draw_answers, intercept
from app.printed import percent
from app.sequential import boundaries

MOST_PARTICIPANTS = 500
PATTERNS = 1999  # of signs, where not all can be counted; the test stays valid and loses next to no power
CHUNK = 500_000  # answers simulated at once
NEAR = 0.002  # to which a detectable rate is found; simulating it is less exact


@dataclass(frozen=True)
class Power:
    """Power at `participants`, in [0, 1], with Monte Carlo standard errors."""

    participants: int
    sign_flip: float
    sign_flip_se: float
    new_images: float
    new_images_se: float


def sign_flips(differences: Ints) -> tuple[Floats, Floats]:
    """`differences.sign_flip` of many studies at once: p and mid-p, each of shape (replicates,).

    `differences`, of shape (replicates, participants), are integers: differences of counts where every
    participant has equally many answers. The distribution of the sum of signed magnitudes m is inverted from its
    characteristic function, the product of cos(m theta), on a grid fine enough to be exact but for rounding,
    below 1e-12.
    """
    magnitudes = np.abs(differences)
    participants = differences.shape[1]
    quarter = (int(magnitudes.sum(1).max(initial=0)) + 2) // 2  # of the circle: 4 * quarter > 2 * largest sum
    p, p_mid = np.ones(len(differences)), np.ones(len(differences))
    theta = np.arange(quarter + 1) * (math.pi / (2 * quarter))
    # The sum and the total have one parity, so that theta and pi - theta say the same.
    weight = np.full(quarter + 1, 1 / quarter)
    weight[[0, -1]] /= 2
    powers = {
        m: np.cos(m * theta)[None, :] ** np.arange(participants + 1)[:, None]
        for m in range(1, int(magnitudes.max(initial=0)) + 1)
    }
    for rows in _chunks(len(differences), quarter):
        characteristic = np.broadcast_to(weight, (rows.stop - rows.start, quarter + 1)).copy()
        for m, power in powers.items():
            characteristic *= power[(magnitudes[rows] == m).sum(1)]
        observed = np.abs(differences[rows].sum(1))[:, None]
        # Sum of cos(t theta) over the t of that parity with |t| < observed.
        inner = np.sin((observed - 1) * theta[1:]) / np.sin(theta[1:])
        below = (characteristic * np.hstack([observed - 1, inner])).sum(1)
        at = (characteristic * np.cos(observed * theta)).sum(1) * np.where(observed[:, 0], 2, 1)
        p[rows] = np.where(observed[:, 0], 1 - below, 1)
        p_mid[rows] = p[rows] - at / 2
    least = 0.5**participants
    return np.clip(p, min(1.0, 2 * least), 1), np.clip(p_mid, least, 1)


def headline_p(answers: Bools, shown: Bools) -> Floats:
    """p of the sign-flip test of each study, shape (replicates,), for answers as in `draw_answers`."""
    n = shown.sum(2)  # (replicates, participants, 2)
    counts = answers.sum(2, dtype=np.int64)
    if np.all(n == n.flat[0]):
        return sign_flips(counts[..., 0] - counts[..., 1])[0]
    # Several packs: participants differ in how many answers they gave about this one, and the grid of all sums is
    # too fine. So each study takes the observed pattern of signs and PATTERNS random ones instead of all 2^N.
    both = n.all(2)
    rates = counts / np.maximum(n, 1)
    differences = np.where(both, rates[..., 0] - rates[..., 1], 0)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (PATTERNS, differences.shape[1]))
    sums = np.abs(signs @ differences.T)  # (patterns, replicates)
    return np.asarray((1 + (sums >= np.abs(differences.sum(1)) - 1e-9).sum(0)) / (1 + PATTERNS))


def new_images_p(answers: Bools, images: Ints, shown: Bools) -> Floats:
    """p of `stats.new_images_test` of many studies at once, shape (replicates,); NaN where it gives none.

    All of shape (replicates, participants, labels, 2); `images` numbers the source images from 0. A participant
    sees a source image at most once, so that each answer is its own cluster of both kinds.
    """
    replicates = len(answers)
    total = shown.sum((1, 2))  # (replicates, 2)
    successes = answers.sum((1, 2))
    residuals = np.where(shown, answers * total[:, None, None] - successes[:, None, None], 0).astype(float)
    most = int(images.max(initial=0)) + 1
    key = np.where(shown, images, 0) + most * np.arange(replicates)[:, None, None, None]
    by_participant, by_image = np.zeros((replicates, answers.shape[1])), np.zeros((replicates, most))
    by_both = np.zeros(replicates)
    seen = np.bincount(key[shown], minlength=replicates * most).reshape(replicates, most) > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        for model, sign in ((0, 1), (1, -1)):
            divisor = (sign * total[:, model] ** 2)[:, None]
            by_participant += residuals[..., model].sum(2) / divisor
            summed = np.bincount(key[..., model].ravel(), residuals[..., model].ravel(), replicates * most)
            by_image += summed.reshape(replicates, most) / divisor
            by_both += np.square(residuals[..., model] / divisor[..., None]).sum((1, 2))
        clusters = [shown.any((2, 3)).sum(1), seen.sum(1), total.sum(1)]
        parts = [np.square(by_participant).sum(1), np.square(by_image).sum(1), by_both]
        v_participant, v_image, v_both = (
            np.where(g > 1, g / (g - 1) * v, 0) for g, v in zip(clusters, parts, strict=True)
        )
        variance = np.maximum(v_participant + v_image - v_both, np.maximum(v_participant, v_image))
        df = np.minimum(clusters[0], clusters[1]) - 1
        rates = successes / total
        t = np.abs(rates[:, 0] - rates[:, 1]) / np.sqrt(variance)
        p = 2 * scipy.stats.t.sf(t, np.maximum(df, 1))
    return np.where((df >= 1) & (variance > 0), p, np.nan)


def curve(
    design: Design,
    rates: tuple[float, float],
    spread: Spread,
    participants: Sequence[int],
    replicates: int,
    seed: int,
    alpha: float = ALPHA,
    looks: Sequence[int] = (),
    progress: bool = False,
) -> list[Power]:
    """The power of both tests at each number of participants, in the order given, from the same studies.

    `rates` are the two models', averaged over new participants and new images; `looks` are as in `rule`. A test
    that gives no p does not reject. Raises ValueError for numbers out of range.
    """
    check(participants, replicates, alpha)
    base = np.array([intercept(rate, spread.total) for rate in rates])
    rng = np.random.default_rng(seed)
    rules = [rule(n, alpha, looks) for n in participants]
    sizes = {size for tests in rules for size, _ in tests}
    rejected = np.zeros((len(participants), 2), np.int64)
    designs, most, labels = design.pair.shape[:3]
    with tqdm(total=replicates, desc="simulating", unit="study", disable=not progress, leave=False) as bar:
        for rows in _chunks(replicates, most * labels * 2):
            which = np.arange(rows.start, rows.stop) % designs
            answers = draw_answers(rng, design, which, base, spread)
            shown = design.pair[which] >= 0
            images = design.source[design.pair[which]]
            p = {n: _both(answers[:, :n], images[:, :n], shown[:, :n]) for n in sizes}
            for i, tests in enumerate(rules):
                # p is a multiple of 0.5^N, here to within rounding: a p of exactly alpha must count.
                crossed = np.array([p[n] <= boundary + 1e-12 for n, boundary in tests])  # (tests, 2, rows)
                rejected[i] += crossed.any(0).sum(1)
            bar.update(rows.stop - rows.start)
    return [
        Power(
            n, a / replicates, _standard_error(a, replicates), b / replicates, _standard_error(b, replicates)
        )
        for n, (a, b) in zip(participants, rejected.tolist(), strict=True)
    ]


def rule(participants: int, alpha: float = ALPHA, looks: Sequence[int] = ()) -> list[tuple[int, float]]:
    """The tests that a study of so many makes, each over its first n participants: [(n, largest p that rejects)].

    `looks` are `Definition.look_sizes`, the last of them the target: looks are for a study of that size alone.
    """
    if not looks or participants != looks[-1]:
        return [(participants, alpha)]
    return list(zip(looks, boundaries([n / participants for n in looks], alpha), strict=True))


def detectable(
    design: Design,
    rates: tuple[float, float],
    spread: Spread,
    participants: int,
    wanted: float,
    replicates: int,
    seed: int,
    alpha: float = ALPHA,
    looks: Sequence[int] = (),
) -> float | None:
    """The rate of the second model nearest to the first's at which the headline test has the power wanted, or None.

    It lies on the side of the first model's rate where `rates` has it, above where they are equal, and is found by
    bisection to NEAR; the same random numbers serve every step, so that power rises with the difference.
    """
    smaller = replace(design, pair=design.pair[:, :participants])
    base, far = rates[0], 1.0 if rates[1] >= rates[0] else 0.0

    def enough(rate: float) -> bool:
        found = curve(smaller, (base, rate), spread, [participants], replicates, seed, alpha, looks)
        return found[0].sign_flip >= wanted

    if not enough(far):
        return None
    near = base
    while abs(far - near) > NEAR:
        middle = (near + far) / 2
        near, far = (near, middle) if enough(middle) else (middle, far)
    return far


def check(participants: Sequence[int], replicates: int, alpha: float) -> None:
    """Raises ValueError, in one line, for what cannot be simulated."""
    if not participants or not all(2 <= n <= MOST_PARTICIPANTS for n in participants):
        raise ValueError(f"the numbers of participants lie between 2 and {MOST_PARTICIPANTS}")
    if not 1 <= replicates <= 1_000_000:
        raise ValueError("the number of replicates lies between 1 and 1000000")
    if not 0 < alpha < 1:
        raise ValueError("alpha lies between 0 and 1, and is neither")


def smallest(powers: Sequence[Power], wanted: float) -> Power | None:
    """That of the smallest number of participants from which on the headline test's power is as wanted."""
    found = None
    for power in sorted(powers, key=lambda p: p.participants, reverse=True):
        if power.sign_flip < wanted:
            break
        found = power
    return found


def bound(power: float, replicates: int) -> float | None:
    """What the power is at least, where every study rejected, or at most, where none did: with 95 % confidence.

    None elsewhere: there a standard error says how sure the share of studies is.
    """
    least: float = 0.05 ** (1 / replicates)
    return {0.0: 1 - least, 1.0: least}.get(power)


def detectable_said(rates: tuple[float, float], rate: float | None, target: int, wanted: float) -> str:
    """The result of `detectable` as a sentence."""
    base = percent(rates[0])
    if rate is None:
        side = "above" if rates[1] >= rates[0] else "below"
        return (
            f"At the target of {target} participants no rate {side} {base} % is told apart from it with a power "
            f"of {percent(wanted)} %."
        )
    # Simulated: more digits than whole points would be none of the truth's, but for the smallest.
    step = 0 if abs(rate - rates[0]) > 0.05 else 1
    return (
        f"At the target of {target} participants the smallest difference with a power of {percent(wanted)} % is "
        f"about {100 * abs(rate - rates[0]):.{step}f} percentage points: {base} % against {100 * rate:.{step}f} %."
    )


def paper_rate(model: str, outcome: str) -> tuple[str, float]:
    """A model with the rate that the paper found on MNIST. Raises ValueError where it has none."""
    rates = PAPER_FOOLED if outcome == "human_fooled" else PAPER_REASONABLE
    if model not in rates:
        raise ValueError(f"the paper has no rate for {model!r}: say which is expected, {model}=RATE")
    return model, rates[model]


def _both(answers: Bools, images: Ints, shown: Bools) -> Floats:
    """p of both tests, shape (2, replicates)."""
    return np.stack([headline_p(answers, shown), new_images_p(answers, images, shown)])


def _standard_error(
    count: int, replicates: int
) -> float:  # never 0: more replicates could change a share of 0
    share = (count + 1) / (replicates + 2)
    return math.sqrt(share * (1 - share) / replicates)


def _chunks(rows: int, size: int) -> Iterator[slice]:
    step = max(1, CHUNK // max(1, size))
    return (slice(start, min(rows, start + step)) for start in range(0, rows, step))
