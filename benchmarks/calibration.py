"""`python -m benchmarks.calibration`: how often the page's intervals cover and its p-values give false alarms.

Studies are simulated where the truth is known (`app.population`, on the bundled pack's images, assigned as a study
assigns them) and put to the functions that the page calls. Tests of thousands of studies at once come from
`app.power`; in every scenario the first CHECKED studies of each size go to `app.stats` too, and both must agree.
"""

import argparse
import json
import math
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import numpy as np
import scipy
from scipy import stats as distributions
from scipy.special import expit
from statsmodels.stats.proportion import proportion_confint  # type: ignore[import-untyped]
from tqdm import tqdm

from app import differences, sequential, stats
from app.clusters import Clustered, Sample
from app.population import (
    NO_SPREAD,
    Bools,
    Design,
    Floats,
    Ints,
    Spread,
    candidates,
    design,
    draw_answers,
    draw_images,
    intercept,
)
from app.power import new_images_p, sign_flips
from app.settings import ROOT
from benchmarks.calibration_report import report
from ml import pack as pack_format

Bar = Callable[[int], object]  # told how many studies more are done
Rng = np.random.Generator

MODELS = ("undefended", "gradient_regularized")
SIZES = (6, 11, 20, 50)
MODERATE = Spread()
STRONG = Spread(1.0, 0.8, 0.8, 0.6, 1.2, 1.0)
SPREADS = {"no": NO_SPREAD, "moderate": MODERATE, "strong": STRONG}
CHUNK = 500  # studies simulated at once
CHECKED = 10
BOOTSTRAPS = 1000
ALPHA, LEVEL = 0.05, 0.95


@dataclass(frozen=True)
class Row:
    """One simulated share, of `kind` "coverage", "false alarms" or "share"; the page vouches for `valid` ones."""

    table: str
    scenario: str
    quantity: str
    n: int
    kind: str
    valid: bool
    share: float
    replicates: int

    @property
    def se(self) -> float:
        """Monte Carlo standard error, at the nominal share where the simulated one is 0 or 1."""
        share = self.share if 0 < self.share < 1 else 0.05
        return math.sqrt(share * (1 - share) / self.replicates)

    @property
    def too_bold(self) -> bool:
        """Beyond the nominal 5 % or 95 % by more than three standard errors."""
        excess = {"false alarms": self.share - ALPHA, "coverage": LEVEL - self.share, "share": 0.0}
        return excess[self.kind] > 3 * self.se


class Tally:
    """Sums of hits and of cases by (quantity, n), over chunks of studies."""

    def __init__(self) -> None:
        self.sums: dict[tuple[str, int, str, bool], tuple[int, int]] = {}

    def add(self, quantity: str, n: int, kind: str, valid: bool, hits: Bools) -> None:
        count, cases = self.sums.get((quantity, n, kind, valid), (0, 0))
        self.sums[quantity, n, kind, valid] = count + int(hits.sum()), cases + hits.size

    def rows(self, table: str, scenario: str) -> list[Row]:
        return [
            Row(table, scenario, quantity, n, kind, valid, count / cases, cases)
            for (quantity, n, kind, valid), (count, cases) in self.sums.items()
            if cases
        ]


def chunks(replicates: int, designs: int) -> Iterable[Ints]:
    """Which design each study follows, CHUNK studies at a time."""
    for start in range(0, replicates, CHUNK):
        yield np.arange(start, min(replicates, start + CHUNK)) % designs


# Intervals of rates


def rates(drawn: Design, replicates: int, rng: Rng, bar: Bar) -> list[Row]:
    """Coverage of a model's rate over new participants and new images, of parts of it, and of single images."""
    rows = []
    for truth in (0.02, 0.164, 0.26, 0.418):
        for name, spread in SPREADS.items():
            tally = Tally()
            base = np.full(2, intercept(truth, spread.total))
            for which in chunks(replicates, len(drawn.pair)):
                images = draw_images(rng, which.size, drawn.source, 2, spread)
                answers = draw_answers(rng, drawn, which, base, spread, images)[..., 0]
                source = drawn.source[drawn.pair[which]][..., 0]
                third = rng.random(answers.shape).argsort(2) < answers.shape[2] // 3
                digit = np.broadcast_to(np.arange(answers.shape[2]) == 0, answers.shape)
                of_image = over_people(base[0] + images[..., 0], spread)
                for n in SIZES:
                    everything = np.ones_like(answers[:, :n])
                    for part, mask in (("rate", everything), ("a third", third), ("one digit", digit)):
                        covered = page_covers(answers[:, :n], source[:, :n], mask[:, :n], truth)
                        tally.add(part, n, "coverage", True, covered)
                    counts = answers[:, :n].sum(2)
                    zero = counts.sum(1) == 0
                    tally.add("zero counts", n, "share", False, zero)
                    low, high = proportion_confint(counts.sum(1), answers.shape[2] * n, method="wilson")
                    tally.add("plain Wilson", n, "coverage", False, (low <= truth) & (truth <= high))
                    resampled = rng.multinomial(n, np.full(n, 1 / n), BOOTSTRAPS) @ counts.T
                    low, high = np.quantile(resampled / (n * answers.shape[2]), [0.025, 0.975], axis=0)
                    tally.add("bootstrap", n, "coverage", False, (low <= truth) & (truth <= high))
                    seen = drawn.pair[which][:, :n, :, 0]
                    tally.add("one image", n, "coverage", True, image_covers(answers[:, :n], seen, of_image))
                bar(which.size)
            rows += tally.rows("rates", f"{100 * truth:g} %, {name} spread")
    return rows


def page_covers(answers: Bools, source: Ints, mask: Bools, truth: float) -> Bools:
    """Whether each study's `stats.rate` interval has the truth, all of shape (replicates, participants, labels)."""
    people = np.broadcast_to(np.arange(answers.shape[1])[:, None], answers.shape[1:])
    covered = np.zeros(len(answers), bool)
    for i in range(len(answers)):
        chosen = mask[i]
        sample = Sample.of_answers(people[chosen], source[i][chosen], answers[i][chosen])
        found = stats.rate(Clustered.of(sample))
        assert found.low is not None
        assert found.high is not None
        covered[i] = found.low <= truth <= found.high
    return covered


def image_covers(answers: Bools, pair: Ints, truth: Floats) -> Bools:
    """Whether the interval of each image seen has its rate over new people: truth, (replicates, pairs)."""
    pairs = truth.shape[1]
    key = (pair + pairs * np.arange(len(pair))[:, None, None]).ravel()
    n = np.bincount(key, minlength=truth.size)
    count = np.bincount(key, answers.ravel(), minlength=truth.size).astype(np.int64)
    seen = n > 0
    low, high = np.array(
        [of_one_image(c, m) for c, m in zip(count[seen].tolist(), n[seen].tolist(), strict=True)]
    ).T
    return np.asarray((low <= truth.ravel()[seen]) & (truth.ravel()[seen] <= high))


of_one_image = stats.exact_interval  # what app.views gives a single image
fisher = lru_cache(maxsize=None)(stats.fisher)
pooled_z = lru_cache(maxsize=None)(stats.pooled_z)


# Comparisons of two models


@lru_cache(maxsize=32)
def _over_people(sd: float) -> tuple[Floats, Floats]:
    """expit averaged over people, as a table over logits."""
    logits = np.linspace(-40, 40, 16001)
    nodes, weights = np.polynomial.hermite_e.hermegauss(61)
    return logits, expit(logits[:, None] + sd * nodes) @ (weights / weights.sum())


def over_people(logits: Floats, spread: Spread) -> Floats:
    """Rates over new participants, of the shape of the images' logits."""
    sd = math.hypot(spread.participant, spread.participant_model)
    return np.asarray(np.interp(logits, *_over_people(sd)))


def matched(base: Floats, images: Floats, drawn: Design, spread: Spread) -> Floats:
    """Base logits (replicates, 1, 1, 2) that give both models one rate, for new participants on these images."""
    wanted = over_people(base[0] + images[..., 0], spread) @ drawn.weight
    low, high = np.full(len(images), -15.0), np.full(len(images), 15.0)
    for _ in range(40):
        middle = (low + high) / 2
        above = over_people(middle[:, None] + images[..., 1], spread) @ drawn.weight > wanted
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return np.stack([np.full_like(low, base[0]), low], axis=1)[:, None, None, :]


def comparison(
    table: str,
    scenario: str,
    drawn: Design,
    pair_of_rates: tuple[float, float],
    spread: Spread,
    replicates: int,
    rng: Rng,
    bar: Bar,
    match: bool = False,
) -> list[Row]:
    """False alarms of every p-value, and coverage of the paired-t interval for the difference on these images.

    Tables: "these images", where the models have one rate on the very images; "new images", where only the average
    over all images is one; "difference", where there is one. `match` makes a null for these images of any spread.
    """
    tally = Tally()
    base = np.array([intercept(rate, spread.total) for rate in pair_of_rates])
    null = table != "difference"
    here = table == "these images"
    for part, which in enumerate(chunks(replicates, len(drawn.pair))):
        images = draw_images(rng, which.size, drawn.source, 2, spread)
        bases = matched(base, images, drawn, spread) if match else base
        answers = draw_answers(rng, drawn, which, bases, spread, images)
        on_these = over_people(np.broadcast_to(bases, (len(images), 1, 1, 2))[:, 0] + images, spread)
        truth = np.einsum("rpm,p->rm", on_these, drawn.weight) @ [1, -1]
        source = drawn.source[drawn.pair[which]]
        for n in SIZES:
            counts = answers[:, :n].sum(2, dtype=np.int64)
            differences = counts[..., 0] - counts[..., 1]
            p, p_mid = sign_flips(differences)
            mean, half = paired_t(differences / answers.shape[2])
            p_new = new_images_p(answers[:, :n], source[:, :n], np.ones_like(answers[:, :n]))
            if part == 0:
                check(answers[:CHECKED, :n], source[:CHECKED, :n], p, p_mid, mean, half, p_new)
            given = half > 0
            covered = np.abs(mean - truth)[given] <= half[given] + 1e-12
            tally.add("paired t", n, "coverage", False, covered)  # the page calls it approximate
            if not null:
                continue
            tally.add("sign-flip", n, "false alarms", here, p <= ALPHA + 1e-12)
            tally.add("mid-p", n, "false alarms", False, p_mid <= ALPHA + 1e-12)
            tally.add("new images", n, "false alarms", True, p_new <= ALPHA)
            if part < 4:  # Fisher's test is slow
                total = answers.shape[2] * n
                pooled = counts.sum(1).tolist()
                for name, test in (("Fisher", fisher), ("z", pooled_z)):
                    naive = [test(a, total, b, total) for a, b in pooled]
                    hits = np.array([x is not None and x <= ALPHA for x in naive])
                    tally.add(name, n, "false alarms", False, hits)
        bar(which.size)
    return tally.rows(table, scenario)


def paired_t(differences: Floats) -> tuple[Floats, Floats]:
    """Means, and half the widths of 95 % intervals (0 where all are equal), as `app.differences` has them."""
    n = differences.shape[1]
    spread = differences.std(1, ddof=1)
    half = -distributions.t.ppf((1 - LEVEL) / 2, n - 1) * spread / math.sqrt(n)
    return differences.mean(1), np.where(spread > 1e-9, half, 0)


def check(
    answers: Bools, source: Ints, p: Floats, p_mid: Floats, mean: Floats, half: Floats, p_new: Floats
) -> None:
    """Raises AssertionError unless `app.stats` says the same of each of these studies."""
    labels = answers.shape[2]
    people = np.broadcast_to(np.arange(answers.shape[1])[:, None], answers.shape[1:3]).ravel()
    for i, study in enumerate(answers):
        own = [Fraction(int(d), labels) for d in study.sum(1) @ [1, -1]]
        flip = differences.sign_flip(own)
        assert flip is not None
        assert np.allclose([flip.p, flip.p_mid], [p[i], p_mid[i]], rtol=0, atol=1e-11)
        center, interval = differences.mean_difference(own)
        assert center is not None
        assert abs(center - mean[i]) < 1e-11
        found = 0 if interval.low is None else center - interval.low
        assert abs(found - half[i]) < 1e-11
        a, b = (Sample.of_answers(people, source[i, ..., m].ravel(), study[..., m].ravel()) for m in (0, 1))
        expected = stats.new_images_test(Clustered.of(a, b)).p
        assert np.isnan(p_new[i]) if expected is None else abs(expected - p_new[i]) < 1e-9


def comparisons(drawn: Design, replicates: int, rng: Rng, bar: Bar) -> list[Row]:
    """Every scenario of two models."""
    rows = []
    for rate in (0.02, 0.26, 0.4):
        for name, spread in SPREADS.items():
            scenario = f"{100 * rate:g} %, {name} spread"
            alike = replace(spread, image_model=0, pair_model=0)
            rows += comparison("these images", scenario, drawn, (rate, rate), alike, replicates, rng, bar)
            if name != "no":
                by_model = f"{scenario}, images differ by model"
                rows += comparison(
                    "these images", by_model, drawn, (rate, rate), spread, replicates, rng, bar, match=True
                )
                rows += comparison("new images", scenario, drawn, (rate, rate), spread, replicates, rng, bar)
        own = replace(MODERATE, participant_model=0, image_model=1.0, pair_model=1.0)
        strongly = f"{100 * rate:g} %, images differ strongly by model, people do not"
        rows += comparison("new images", strongly, drawn, (rate, rate), own, replicates, rng, bar)
    for name, spread in SPREADS.items():
        for pair_of_rates in ((0.26, 0.418), (0.02, 0.164)):
            scenario = f"{100 * pair_of_rates[0]:g} and {100 * pair_of_rates[1]:g} %, {name} spread"
            rows += comparison("difference", scenario, drawn, pair_of_rates, spread, replicates, rng, bar)
    return rows


# Looking before the end


LOOKS = {
    "2 of 20": (10, 20),
    "4 of 20": (6, 10, 15, 20),
    "2 of 50": (25, 50),
    "5 of 50": (10, 20, 30, 40, 50),
}


def looks(drawn: Design, replicates: int, rng: Rng, bar: Bar) -> list[Row]:
    """False alarms of the sign-flip test at any of several looks, declared with O'Brien-Fleming bounds and not."""
    rows = []
    for rate in (0.26, 0.4):
        for name, spread in SPREADS.items():
            tally = Tally()
            alike = replace(spread, image_model=0, pair_model=0)
            base = np.full(2, intercept(rate, alike.total))
            for which in chunks(replicates, len(drawn.pair)):
                counts = draw_answers(rng, drawn, which, base, alike).sum(2, dtype=np.int64)
                differences = counts[..., 0] - counts[..., 1]
                p = {n: sign_flips(differences[:, :n])[0] - 1e-12 for n in range(6, 51)}
                tally.add("one look, at 50", 50, "false alarms", True, p[50] <= ALPHA)
                ever = np.min([p[n] for n in range(6, 51)], axis=0) <= ALPHA
                tally.add("after every participant from 6", 50, "false alarms", False, ever)
                for plan, sizes in LOOKS.items():
                    bounds = sequential.boundaries([n / sizes[-1] for n in sizes], ALPHA)
                    crossed = np.any([p[n] <= bound for n, bound in zip(sizes, bounds, strict=True)], axis=0)
                    tally.add(f"declared, {plan}", sizes[-1], "false alarms", True, crossed)
                bar(which.size)
            rows += tally.rows("looks", f"{100 * rate:g} %, {name} spread")
    return rows


def study(replicates: int, seed: int, designs: int = 40) -> list[Row]:
    """Every table. Rates take a fifth of the replicates: `stats.rate` is called for each study."""
    pack = pack_format.read(ROOT / "stimuli" / "mnist-jsma")
    drawn = design(candidates([pack]), pack.name, MODELS, max(SIZES), designs, seed)
    rng = np.random.default_rng(seed)
    fewer = max(1, replicates // 5)
    with tqdm(total=12 * fewer + 30 * replicates + 6 * replicates, unit="study", smoothing=0) as bar:
        return [
            *rates(drawn, fewer, rng, bar.update),
            *comparisons(drawn, replicates, rng, bar.update),
            *looks(drawn, replicates, rng, bar.update),
        ]


def main() -> None:
    """Writes calibration.md and calibration.json, and prints what is too bold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calibration", description=__doc__)
    parser.add_argument("--replicates", type=int, default=10_000, help="simulated studies a scenario")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "docs", metavar="DIR")
    args = parser.parse_args()
    start = time.monotonic()
    rows = study(args.replicates, args.seed)
    about = {
        "command": f"python -m benchmarks.calibration --replicates {args.replicates} --seed {args.seed}",
        "versions": {
            "Python": platform.python_version(),
            "NumPy": np.__version__,
            "SciPy": scipy.__version__,
        },
        "seconds": round(time.monotonic() - start),
        "pack": "mnist-jsma",
        "spreads": {name: asdict(spread) for name, spread in SPREADS.items()},
    }
    args.out.mkdir(parents=True, exist_ok=True)
    records = [asdict(row) | {"se": round(row.se, 5), "too_bold": row.too_bold} for row in rows]
    lines = ",\n".join("  " + json.dumps(record) for record in records)
    (args.out / "calibration.json").write_text(f'{{"about": {json.dumps(about)},\n "rows": [\n{lines}\n]}}\n')
    (args.out / "calibration.md").write_text(report(records, about))
    for row in rows:
        if row.valid and row.too_bold:
            where = f"{row.table}, {row.scenario}, {row.quantity}, N = {row.n}"
            print(f"too bold: {where}: {row.share:.3f} ({row.se:.3f})")


if __name__ == "__main__":
    main()
