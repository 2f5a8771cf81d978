"""What the dashboard should say, worked out anew from the CSV by other means; nothing here imports app.stats."""

import hashlib
import io
import itertools
import json
import math
import random
import uuid
from collections.abc import Callable, Collection, Sequence
from fractions import Fraction
from typing import Any, NoReturn
from unittest.mock import patch

import httpx2
import numpy as np
import numpy.typing as npt
import pandas as pd  # type: ignore[import-untyped]
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests  # type: ignore[import-untyped]
from statsmodels.stats.proportion import proportion_confint, proportions_ztest  # type: ignore[import-untyped]

from ml.pack import Pack, Stimulus

MODELS = ("undefended", "distilled", "gradient_regularized")
COMPARED = ("human_fooled", "mistake_reasonable", "mistake_reasonable_direct")
OUTCOMES = (
    *COMPARED,
    "target_first",
    "target_second",
    "none_plausible",
    "kept_source",
    "reasonable_none_unreasonable",
    "reasonable_none_dropped",
    "reasonable_not_fooled",
    "placebo_reasonable",
    "placebo_fooled",
    "placebo_second",
    "placebo_none_unreasonable",
    "placebo_none_dropped",
    "placebo_not_fooled",
)
Choose = Callable[[Stimulus | None], dict[str, Any]]

# Playing


def play(
    client: httpx2.Client,
    study: str,
    packs: Sequence[Pack],
    choose: Choose,
    labels: int = 1000,
    judgments: int = 1000,
    finish: bool = True,
    rt_ms: float | None = None,
    **external: str,
) -> str:
    """Plays one participant at the API, up to so many labels and judgments; returns the token.

    `choose` is told the hidden stimulus (None: practice) and gives label, runner_up and plausible.
    """
    hidden = {s.sha256: s for pack in packs for s in pack.stimuli}
    reply = client.post("/api/sessions", json={"study": study, "consent": True, "external": external})
    assert reply.status_code == 201, reply.text
    token: str = reply.json()["token"]
    base = f"/api/sessions/{token}"
    here = client.get(base).json()
    answers = [choose(hidden.get(trial["image"][9:73])) for trial in here["trials"]]
    left = {"label": labels, "plausibility": judgments}
    for question, state in (("label", "labelling"), ("plausibility", "judging")):
        here = client.get(base).json()
        position = here["next_position"] if here["state"] == state else None
        while position is not None and left[question]:
            answer = answers[position - 1]
            body = {"answer_id": str(uuid.uuid4()), "rt_ms": answer.get("rt_ms", rt_ms), "display": {}}
            keys = (
                [k for k in ("label", "runner_up") if k in answer] if question == "label" else ["plausible"]
            )
            reply = client.put(
                f"{base}/trials/{position}/{question}", json=body | {k: answer[k] for k in keys}
            )
            assert reply.status_code == 200, reply.text
            position = reply.json()["next_position"]
            left[question] -= 1
    if finish and client.get(base).json()["state"] == "commenting":
        assert client.post(f"{base}/comments", json={"text": "B."}).status_code == 200
        assert client.post(f"{base}/finish").status_code == 200
    return token


def at_random(seed: object, labels: Sequence[str], runner_up: bool = True) -> Choose:
    """Answers by chance, with rates that differ between models and between participants."""
    rng = random.Random(f"{seed}")
    tendency = rng.uniform(-0.15, 0.15)

    def choose(stimulus: Stimulus | None) -> dict[str, Any]:
        if stimulus is None:
            first = rng.choice([*labels, "none"])
        else:
            likely = {"undefended": 0.15, "distilled": 0.25, "gradient_regularized": 0.5}[stimulus.model]
            weights = [likely + tendency, 0.35, 0.15, 0.2]
            first = rng.choices(
                [stimulus.target_label, stimulus.source_label, rng.choice(labels), "none"], weights
            )[0]
        answer: dict[str, Any] = {"label": first, "rt_ms": rng.lognormvariate(7, 0.5)}
        if runner_up:
            others = [label for label in (*labels, "none") if label != first]
            answer["runner_up"] = "none" if first == "none" else rng.choice(others)
        return answer | {"plausible": rng.random() < 0.4 + tendency}

    return choose


Counts = tuple[int, int, int, int]


def by_labels(counts: dict[str, Counts]) -> Choose:
    """Answers by source label, in the order of the digits: for each model, how many of its images are answered

    (target first, target second, none), the rest with the source; and on how many the verdict is yes.
    """

    def choose(stimulus: Stimulus | None) -> dict[str, Any]:
        if stimulus is None:
            return {"label": "none", "runner_up": "none"}
        source, target = stimulus.source_label, stimulus.target_label
        fooled, second, none, yes = counts[stimulus.model]
        answers = [(target, source)] * fooled + [(source, target)] * second + [("none", "none")] * none
        answers += [(source, "none")] * 10
        first, runner_up = answers[int(source)]
        return {"label": first, "runner_up": runner_up, "plausible": int(source) < yes, "rt_ms": 900}

    return choose


# Working it out


def read_csv(text: str) -> Any:
    return pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)


def strict(text: str) -> Any:
    """JSON as its standard has it: without NaN and Infinity."""

    def refuse(constant: str) -> NoReturn:
        raise AssertionError(f"{constant} in JSON")

    return json.loads(text, parse_constant=refuse)


def placebo(seed: int, stimulus: str, source: str, target: str, labels: Sequence[str]) -> str:
    """From the docstring of app.assignment.placebo_label."""
    rest = sorted(label for label in labels if label not in (source, target))
    text = f"placebo\n{seed}\n{stimulus}\n{source}\n{target}"
    first_48_bits = int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:6], "big")
    return rest[first_48_bits % len(rest)]


def main_trials(csv: str, packs: Sequence[Pack], seed: int) -> Any:
    """The main rows, each outcome in a column: 1, 0 or, where it was not asked, NaN."""
    frame = read_csv(csv)
    main = frame[frame["kind"] == "main"].reset_index(drop=True)
    hidden = {s.sha256: s for pack in packs for s in pack.stimuli}
    main["image"] = [hidden[sha256].source_index for sha256 in main["stimulus"]]
    placebos = [
        placebo(seed, sha256, source, target, packs[0].labels)
        for sha256, source, target in zip(
            main["stimulus"], main["source_label"], main["target_label"], strict=True
        )
    ]
    none = main["label"] == "none"
    asked_twice, judged = main["runner_up"] != "", main["plausible"] != ""
    main["mistake_reasonable_direct"] = (main["plausible"] == "1").astype(float).where(judged)
    main["none_plausible"] = none.astype(float)
    main["kept_source"] = (main["label"] == main["source_label"]).astype(float)
    for against, names in (
        (main["target_label"], ("human_fooled", "mistake_reasonable", "target_second", "reasonable")),
        (placebos, ("placebo_fooled", "placebo_reasonable", "placebo_second", "placebo")),
    ):
        fooled, reasonable, named_second, rest = names
        first, second = main["label"] == against, main["runner_up"] == against
        main[fooled] = first.astype(float)
        main[reasonable] = (first | second | none).astype(float)
        main[named_second] = second.astype(float).where(asked_twice)
        main[f"{rest}_none_unreasonable"] = (first | second).astype(float)
        main[f"{rest}_none_dropped"] = (first | second).astype(float).where(~none)
        main[f"{rest}_not_fooled"] = (second | none).astype(float).where(~first)
    main["target_first"] = main["human_fooled"]
    return main


def two_way_variance(e: npt.NDArray[np.float64], participants: Any, images: Any) -> float:
    """Cameron, Gelbach and Miller's, pair by pair: every two answers that share a cluster."""
    p, i = np.asarray(participants), np.asarray(images)
    same_p, same_i = p[:, None] == p[None, :], i[:, None] == i[None, :]
    both = {(a, b) for a, b in zip(p.tolist(), i.tolist(), strict=True)}

    def one(same: npt.NDArray[np.bool_], clusters: int) -> float:
        return 0.0 if clusters < 2 else clusters / (clusters - 1) * float(e @ same @ e)

    by_p, by_i = one(same_p, len(set(p.tolist()))), one(same_i, len(set(i.tolist())))
    return max(by_p + by_i - one(same_p & same_i, len(both)), by_p, by_i)


def expected_rate(rows: Any, outcome: str) -> dict[str, Any]:
    rows = rows.dropna(subset=[outcome])
    n, count = len(rows), int(rows[outcome].sum())
    if n == 0:
        return {"count": 0, "n": 0, "rate": None, "low": None, "high": None}
    p = count / n
    deff = 1.0
    if 0 < count < n:
        e = (rows[outcome].to_numpy() - p) / n
        df = min(rows["participant"].nunique(), rows["image"].nunique()) - 1
        few = float(scipy_stats.t.ppf(0.975, df) / scipy_stats.norm.ppf(0.975)) if df else 1.0
        variance = two_way_variance(e, rows["participant"], rows["image"])
        deff = max(1.0, few**2 * variance / (p * (1 - p) / n))
    low, high = proportion_confint(p * n / deff, n / deff, method="wilson")
    return {"count": count, "n": n, "rate": p, "low": low, "high": high}


def expected_rates(rows: Any) -> dict[str, Any]:
    return {"n": len(rows)} | {outcome: expected_rate(rows, outcome) for outcome in OUTCOMES}


def expected_comparison(rows: Any, a: str, b: str, outcome: str) -> dict[str, Any]:
    rows = rows.dropna(subset=[outcome])
    in_a, in_b = rows[rows["model"] == a], rows[rows["model"] == b]

    def per_participant(side: Any) -> dict[str, Fraction]:
        sums = side.groupby("participant")[outcome].agg(["sum", "count"])
        return {who: Fraction(int(row["sum"]), int(row["count"])) for who, row in sums.iterrows()}

    of_a, of_b = per_participant(in_a), per_participant(in_b)
    differences = [of_a[who] - of_b[who] for who in of_a if who in of_b]
    found: dict[str, Any] = {"participants": len(differences), "p_exact": True}
    found |= dict.fromkeys(
        ("difference", "low", "high", "p", "p_mid", "p_naive", "p_naive_z", "p_new_images")
    )
    found |= dict.fromkeys(("rate_a", "rate_b"))
    if differences:
        for name, own, other in (("rate_a", of_a, of_b), ("rate_b", of_b, of_a)):
            found[name] = float(np.mean([float(rate) for who, rate in own.items() if who in other]))
        found["difference"] = float(sum(differences, Fraction(0)) / len(differences))
        sums = [
            abs(sum((s * d for s, d in zip(signs, differences, strict=True)), Fraction(0)))
            for signs in itertools.product((1, -1), repeat=len(differences))
        ]
        observed = abs(sum(differences, Fraction(0)))
        found["p"] = sum(s >= observed for s in sums) / len(sums)
        found["p_mid"] = found["p"] - sum(s == observed for s in sums) / len(sums) / 2
    if len(set(differences)) > 1:
        interval = scipy_stats.ttest_1samp([float(d) for d in differences], 0).confidence_interval()
        found["low"], found["high"] = float(interval.low), float(interval.high)
    if len(in_a) and len(in_b):
        rate_a, rate_b = in_a[outcome].mean(), in_b[outcome].mean()
        both = pd.concat([in_a, in_b])
        e = np.concatenate(
            [(in_a[outcome] - rate_a) / len(in_a), -(in_b[outcome] - rate_b) / len(in_b)]
        ).astype(float)
        df = min(both["participant"].nunique(), both["image"].nunique()) - 1
        variance = two_way_variance(e, both["participant"], both["image"])
        if df >= 1 and variance > 1e-30:
            found["p_new_images"] = 2 * float(
                scipy_stats.t.sf(abs(rate_a - rate_b) / math.sqrt(variance), df)
            )
        count_a, count_b = int(in_a[outcome].sum()), int(in_b[outcome].sum())
        found["p_naive"] = fisher(count_a, len(in_a), count_b, len(in_b))
        if 0 < count_a + count_b < len(in_a) + len(in_b):
            found["p_naive_z"] = float(proportions_ztest([count_a, count_b], [len(in_a), len(in_b)])[1])
    return found


def fisher(count_a: int, n_a: int, count_b: int, n_b: int) -> float:
    """Both margins fixed: the chance of all tables no likelier than this one, in whole numbers."""
    successes = count_a + count_b
    ways = {
        x: math.comb(n_a, x) * math.comb(n_b, successes - x)
        for x in range(max(0, successes - n_b), min(n_a, successes) + 1)
    }
    return sum(w for w in ways.values() if w <= ways[count_a]) / sum(ways.values())


def holm(p_values: list[float]) -> list[float]:
    """Statsmodels', without the garbage that it collects first: that takes a second where much is loaded."""
    with patch("gc.collect"):
        adjusted: list[float] = multipletests(p_values, method="holm")[1].tolist()
    return adjusted


def expected_packs(
    csv: str,
    packs: Sequence[Pack],
    seed: int,
    finished: Collection[str],
    primary: tuple[str, str, str, str],
    compared: Sequence[str] = COMPARED,
) -> dict[str, Any]:
    """The JSON's `packs`, unmasked, where `finished` are pseudonyms; comparisons keyed by (a, b, outcome)."""
    main = main_trials(csv, packs, seed)
    kept = main[main["excluded"] == "0"]
    complete = kept[kept["participant"].isin(list(finished))]
    result: dict[str, Any] = {}
    for pack in packs:
        of_pack = kept[kept["pack"] == pack.name]
        complete_of_pack = complete[complete["pack"] == pack.name]
        comparisons: dict[tuple[str, str, str], dict[str, Any]] = {}
        for pair, outcome in itertools.product(itertools.combinations(MODELS, 2), compared):
            a, b = pair if (pack.name, *reversed(pair)) != primary[:3] else (pair[1], pair[0])
            comparisons[a, b, outcome] = expected_comparison(complete_of_pack, a, b, outcome) | {
                "primary": (pack.name, a, b, outcome) == primary
            }
        result[pack.name] = {
            "models": {m: expected_rates(of_pack[of_pack["model"] == m]) for m in MODELS},
            "together": expected_rates(of_pack),
            "comparisons": comparisons,
        }
    every = [c for r in result.values() for c in r["comparisons"].values()]
    family = [c for c in every if not c["primary"] and c["p"] is not None]
    for c in every:
        c["p_holm"] = None
    if family:
        for c, adjusted in zip(family, holm([c["p"] for c in family]), strict=True):
            c["p_holm"] = adjusted
    return result


def assert_close(found: Any, expected: Any, where: str = "") -> None:
    """Equal in structure, numbers to 1e-9."""
    if isinstance(expected, dict):
        assert set(found) == set(expected), where
        for key in expected:
            assert_close(found[key], expected[key], f"{where}/{key}")
    elif isinstance(expected, bool) or expected is None or isinstance(expected, int | str):
        assert found == expected, f"{where}: {found} is not {expected}"
    else:
        assert found is not None, f"{where}: null is not {expected}"
        assert math.isclose(found, expected, rel_tol=1e-9, abs_tol=1e-9), (
            f"{where}: {found} is not {expected}"
        )
