"""How many participants a study needs: simulated studies, put to the very tests that the results page makes.

Each simulated study draws images and participants (`app.population`), assigns images with `app.assignment` and
tests the difference between two models: by the sign-flip test of participants' differences of rates (the
headline) and by the test for new participants and new images. Its power is the share of studies with p <= alpha.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from scipy import stats as distributions
from tqdm import tqdm

from app.bot import PAPER_FOOLED, PAPER_REASONABLE
from app.definition import Primary
from app.figures import COLORS, INK, WIDTH, as_svg, canvas, drawn, finish, note, panel
from app.population import Bools, Design, Floats, Ints, Spread, candidates, design, draw_answers, intercept
from app.printed import percent
from ml.pack import Pack

MOST_PARTICIPANTS = 500
PATTERNS = 1999  # of signs, where not all can be counted; the test stays valid and loses next to no power
CHUNK = 500_000  # answers simulated at once


@dataclass(frozen=True)
class Power:
    """Power at `participants`, in [0, 1], with Monte Carlo standard errors."""

    participants: int
    sign_flip: float
    sign_flip_se: float
    new_images: float
    new_images_se: float


def sign_flips(differences: Ints) -> tuple[Floats, Floats]:
    """`stats.sign_flip` of many studies at once: p and mid-p, each of shape (replicates,).

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
        p = 2 * distributions.t.sf(t, np.maximum(df, 1))
    return np.where((df >= 1) & (variance > 0), p, np.nan)


def curve(
    design: Design,
    rates: tuple[float, float],
    spread: Spread,
    participants: Sequence[int],
    replicates: int,
    seed: int,
    alpha: float = 0.05,
    progress: bool = False,
) -> list[Power]:
    """The power of both tests at each number of participants, in the order given, from the same studies.

    `rates` are the two models', averaged over new participants and new images. A test that gives no p does not
    reject. Raises ValueError for numbers out of range.
    """
    check(participants, replicates, alpha)
    base = np.array([intercept(rate, spread.total) for rate in rates])
    rng = np.random.default_rng(seed)
    rejected = np.zeros((len(participants), 2), np.int64)
    designs, most, labels = design.pair.shape[:3]
    with tqdm(total=replicates, desc="simulating", unit="study", disable=not progress, leave=False) as bar:
        for rows in _chunks(replicates, most * labels * 2):
            which = np.arange(rows.start, rows.stop) % designs
            answers = draw_answers(rng, design, which, base, spread)
            shown = design.pair[which] >= 0
            images = design.source[design.pair[which]]
            for i, n in enumerate(participants):
                p = headline_p(answers[:, :n], shown[:, :n])
                p_new = new_images_p(answers[:, :n], images[:, :n], shown[:, :n])
                # p is a multiple of 0.5^N, here to within rounding: a p of exactly alpha must count.
                rejected[i] += (p <= alpha + 1e-12).sum(), (p_new <= alpha).sum()
            bar.update(rows.stop - rows.start)
    return [
        Power(
            n, a / replicates, _standard_error(a, replicates), b / replicates, _standard_error(b, replicates)
        )
        for n, (a, b) in zip(participants, rejected.tolist(), strict=True)
    ]


def check(participants: Sequence[int], replicates: int, alpha: float) -> None:
    """Raises ValueError, in one line, for what cannot be simulated."""
    if not participants or not all(2 <= n <= MOST_PARTICIPANTS for n in participants):
        raise ValueError(f"the numbers of participants lie between 2 and {MOST_PARTICIPANTS}")
    if not 1 <= replicates <= 1_000_000:
        raise ValueError("the number of replicates lies between 1 and 1000000")
    if not 0 < alpha < 1:
        raise ValueError("alpha lies between 0 and 1, and is neither")


def smallest(powers: Sequence[Power], wanted: float) -> int | None:
    """The smallest number of participants from which on the headline test's power is as wanted, if there is one."""
    found = None
    for power in sorted(powers, key=lambda p: p.participants, reverse=True):
        if power.sign_flip < wanted:
            break
        found = power.participants
    return found


def add_arguments(parser: argparse.ArgumentParser, model_rate: Callable[[str], tuple[str, float]]) -> None:
    """The options of `python -m app power`; `model_rate` reads MODEL=RATE."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--study",
        default="mnist",
        help="its packs and primary comparison are simulated (default: %(default)s)",
    )
    where.add_argument("--pack", type=Path, metavar="DIR", help="a pack alone, instead of a study's")
    for which in ("a", "b"):
        parser.add_argument(
            f"--{which}",
            type=model_rate,
            metavar="MODEL=RATE",
            help="default: the primary comparison's model, at the paper's MNIST rate",
        )
    parser.add_argument(
        "--participants",
        type=int,
        nargs="+",
        default=[*range(6, 41, 2), 50],
        metavar="N",
        help="(default: 6 to 50)",
    )
    parser.add_argument("--power", type=float, default=0.8, help="the power wanted (default: %(default)s)")
    parser.add_argument("--alpha", type=float, default=0.05, help="(default: %(default)s)")
    parser.add_argument(
        "--replicates", type=int, default=4000, help="simulated studies (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    for field in fields(Spread):
        parser.add_argument(
            f"--sd-{field.name.replace('_', '-')}",
            type=float,
            default=field.default,
            metavar="SD",
            help=f"spread of {field.name.replace('_', ' x ')} effects, in logits (an assumption: %(default)s)",
        )
    parser.add_argument(
        "--out", type=Path, metavar="PATH", help="a figure.svg, or a folder for figure and numbers"
    )


def run(args: argparse.Namespace, packs: Sequence[Pack], primary: Primary) -> str:
    """`python -m app power`: what it prints. Raises ValueError for what cannot be simulated."""
    check(args.participants, args.replicates, args.alpha)
    if not 0 < args.power < 1:
        raise ValueError("--power lies between 0 and 1, and is neither")
    if args.seed < 0:
        raise ValueError("--seed must not be negative")
    spread = Spread(**{field.name: getattr(args, f"sd_{field.name}") for field in fields(Spread)})
    asked = (args.a, primary.a), (args.b, primary.b)
    models, rates = zip(*(given or paper_rate(model, primary.outcome) for given, model in asked), strict=True)
    participants = sorted(set(args.participants))
    designs = min(args.replicates, 20)
    drawn = design(
        candidates(packs), primary.pack, models, participants[-1], designs, args.seed, progress=True
    )
    found = curve(drawn, rates, spread, participants, args.replicates, args.seed, args.alpha, progress=True)
    title = f"{title_of(models, rates)}, {primary.pack}"
    if args.out:
        svg = args.out if args.out.suffix == ".svg" else args.out / "power.svg"
        svg.parent.mkdir(parents=True, exist_ok=True)
        svg.write_text(figure(found, args.power, f"Power: {title}"))
        if svg != args.out:
            numbers = {name: getattr(args, name) for name in ("alpha", "replicates", "seed")} | {
                "models": dict(zip(models, rates, strict=True)),
                "pack": primary.pack,
                "spread": asdict(spread),
                "powers": [asdict(power) for power in found],
            }
            (args.out / "power.json").write_text(json.dumps(numbers, indent=1) + "\n")
    effects = ", ".join(f"{name.replace('_', ' x ')} {sd:g}" for name, sd in asdict(spread).items())
    return "\n".join(
        [
            title,
            f"share of {args.replicates} simulated studies with p <= {args.alpha:g} (Monte Carlo standard error)",
            f"spread in logits, an assumption: {effects}",
            table(found),
            conclusion(found, args.power),
        ]
    )


def paper_rate(model: str, outcome: str) -> tuple[str, float]:
    """A model with the rate that the paper found on MNIST. Raises ValueError where it has none."""
    rates = PAPER_FOOLED if outcome == "human_fooled" else PAPER_REASONABLE
    if model not in rates:
        raise ValueError(f"the paper has no rate for {model!r}: say which is expected, {model}=RATE")
    return model, rates[model]


def title_of(models: Sequence[str], rates: Sequence[float]) -> str:
    """The two models and the rates that are expected of them."""
    return " against ".join(
        f"{model.replace('_', ' ')} {percent(rate)} %" for model, rate in zip(models, rates, strict=True)
    )


def conclusion(powers: Sequence[Power], wanted: float) -> str:
    """How many participants the headline test needs, as a sentence."""
    least = smallest(powers, wanted)
    if least is None:
        most = max(p.participants for p in powers)
        return f"More than {most} participants are needed for a power of {percent(wanted)} % on these images."
    return (
        f"{least} participants are the fewest here with a power of {percent(wanted)} %, for new participants "
        "on these images."
    )


def table(powers: Sequence[Power]) -> str:
    """The powers in percent, with Monte Carlo standard errors, as text."""
    lines = [f"{'N':>5}{'these images':>18}{'new images':>18}"]
    for p in powers:
        cells = (
            f"{percent(power):>9} % ({100 * se:.1f})"
            for power, se in ((p.sign_flip, p.sign_flip_se), (p.new_images, p.new_images_se))
        )
        lines.append(f"{p.participants:>5}" + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines)


@drawn
def figure(powers: Sequence[Power], wanted: float, title: str, inline: bool = False) -> str:
    """Power over the number of participants, an SVG with a title; `inline` for a page with a strict policy."""
    ordered = sorted(powers, key=lambda p: p.participants)
    n = [p.participants for p in ordered]
    blue, vermilion = COLORS["distilled"], COLORS["undefended"]  # the lines differ in their dashes too
    lines = (
        ("these images", [(p.sign_flip, p.sign_flip_se) for p in ordered], blue, "-", (10, -12), "left"),
        (
            "new images too",
            [(p.new_images, p.new_images_se) for p in ordered],
            vermilion,
            "--",
            (-8, 6),
            "right",
        ),
    )
    chart = canvas(280)
    ax = panel(chart, 44, 12, WIDTH - 64, 220)
    for name, values, color, dashes, beside, side in lines:
        power = [100 * value for value, _ in values]
        error = [100 * se for _, se in values]
        ax.errorbar(n, power, error, color=color, linestyle=dashes, linewidth=2, marker="o", markersize=5)
        place = min(range(len(n)), key=lambda i: abs(power[i] - 50))  # where the line is steep
        note(ax, n[place], power[place], name, *beside, color=color, ha=side)
    ax.axhline(100 * wanted, color=INK, linewidth=0.8, alpha=0.6)
    note(ax, 1, 100 * wanted, f"{percent(wanted)} %", 0, 8, xycoords=ax.get_yaxis_transform(), ha="right")
    ax.set(xlabel="participants", xlim=(0, 1.04 * n[-1]), ylim=(-2, 104))
    ax.yaxis.set_visible(True)
    ax.set_yticks([0, 25, 50, 75, 100], ["0", "25", "50", "75", "100 %"])
    ax.grid(axis="y")
    if inline:
        return finish(chart, title, describe(ordered))
    return as_svg(chart, facecolor="white", metadata={"Date": None, "Title": title})


def describe(powers: Sequence[Power]) -> str:
    """The figure in words."""
    values = [
        f"{p.participants} participants {percent(p.sign_flip)} % (new images too: {percent(p.new_images)} %)"
        for p in powers
    ]
    return f"Power for new participants on these images: {', '.join(values)}."


def _standard_error(
    count: int, replicates: int
) -> float:  # never 0: more replicates could change a share of 0
    share = (count + 1) / (replicates + 2)
    return math.sqrt(share * (1 - share) / replicates)


def _chunks(rows: int, size: int) -> Iterator[slice]:
    step = max(1, CHUNK // max(1, size))
    return (slice(start, min(rows, start + step)) for start in range(0, rows, step))
