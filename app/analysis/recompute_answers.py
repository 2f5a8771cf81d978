"""The numbers of recompute.py that stand on answers: rates, comparisons, looks and views, from the CSV files."""

import csv
import hashlib
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from recompute_methods import (
    Cell,
    Json,
    boundaries,
    clopper_pearson,
    deff,
    fisher,
    new_images,
    paired_t,
    pooled_z,
    sign_flip,
    wilson,
)

COMPARED = ("human_fooled", "mistake_reasonable", "mistake_reasonable_direct")


@dataclass(frozen=True)
class Answer:
    """One answered main trial; `second` and `verdict` are "" where they were not asked."""

    participant: str
    pack: str
    model: str
    stimulus: str
    image: str  # the source image
    source: str
    target: str
    placebo: str
    label: str
    second: str
    verdict: str
    label_ms: float | None
    verdict_ms: float | None
    third: int  # of the session: 0, 1 or 2
    outcomes: dict[str, bool | None]  # None: this answer does not count for the outcome


# Reading


def read_csv(folder: Path, what: str) -> list[dict[str, str]]:
    (path,) = folder.glob(f"data/study-*_description-{what}_data.csv")
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_answers(folder: Path, study: Json, problems: list[str]) -> list[Answer]:
    """The answered main trials: responses.csv joined with trials.csv, one row each."""
    trials = {(row["participant"], row["position"]): row for row in read_csv(folder, "trials")}
    answered: Counter[str] = Counter()
    answers = []
    rows = read_csv(folder, "responses")
    for row in sorted(rows, key=lambda row: (row["participant"], int(row["position"]))):
        if row["kind"] != "main":
            continue
        trial = trials[row["participant"], row["position"]]
        rank = answered[row["participant"]]
        answered[row["participant"]] += 1
        placebo = placebo_label(study, row)
        if placebo != trial["placebo_label"]:
            problems.append(f"placebo_label of {row['participant']}, position {row['position']}")
        second, verdict = row["runner_up"], row["plausible"]
        outcomes = outcomes_of(
            row["label"], second, verdict, row["source_label"], row["target_label"], placebo
        )
        for column, outcome in (("fooled", "human_fooled"), ("reasonable", "mistake_reasonable")):
            if row[column] != str(int(bool(outcomes[outcome]))):
                problems.append(f"{column} of {row['participant']}, position {row['position']}")
        answers.append(
            Answer(
                participant=row["participant"],
                pack=row["pack"],
                model=row["model"],
                stimulus=row["stimulus"],
                image=trial["source_index"],
                source=row["source_label"],
                target=row["target_label"],
                placebo=placebo,
                label=row["label"],
                second=second,
                verdict=verdict,
                label_ms=number(row["label_rt_ms"]),
                verdict_ms=number(row["plausibility_rt_ms"]),
                third=min(rank * 3 // study["definition"]["trials"], 2),
                outcomes=outcomes,
            )
        )
    return answers


def number(cell: str) -> float | None:
    return float(cell) if cell else None


def placebo_label(study: Json, row: dict[str, str]) -> str:
    """A label that is neither source nor target, from the study's seed."""
    source, target = row["source_label"], row["target_label"]
    rest: list[str] = sorted(label for label in study["labels"] if label not in (source, target))
    text = "\n".join(("placebo", str(study["definition"]["seed"]), row["stimulus"], source, target))
    return rest[int(hashlib.sha256(text.encode()).hexdigest()[:12], 16) % len(rest)]


def outcomes_of(
    label: str, second: str, verdict: str, source: str, target: str, placebo: str
) -> dict[str, bool | None]:
    none = label == "none"

    def against(wanted: str) -> dict[str, bool | None]:
        first_is, second_is = label == wanted, second == wanted
        return {
            "fooled": first_is,
            "reasonable": first_is or second_is or none,
            "none_unreasonable": first_is or second_is,
            "none_dropped": None if none else first_is or second_is,
            "not_fooled": None if first_is else second_is or none,
            "second": second_is if second else None,
        }

    hit, chance = against(target), against(placebo)
    return {
        "human_fooled": hit["fooled"],
        "mistake_reasonable": hit["reasonable"],
        "mistake_reasonable_direct": verdict == "1" if verdict else None,
        "reasonable_none_unreasonable": hit["none_unreasonable"],
        "reasonable_none_dropped": hit["none_dropped"],
        "reasonable_not_fooled": hit["not_fooled"],
        "target_first": hit["fooled"],
        "target_second": hit["second"],
        "none_plausible": none,
        "kept_source": label == source,
    } | {f"placebo_{name}": value for name, value in chance.items()}


# Rates and comparisons


def cells(answers: Iterable[Answer], outcome: str) -> list[Cell]:
    """The answers that count for the outcome, as (participant, source image, whether they have it)."""
    return [(a.participant, a.image, int(hit)) for a in answers if (hit := a.outcomes[outcome]) is not None]


def rate(answers: Iterable[Answer], outcome: str) -> Json:
    """Count, n, rate and its 95 % interval."""
    counted = cells(answers, outcome)
    n, count = len(counted), sum(hit for _, _, hit in counted)
    if n == 0:
        return {"count": 0, "n": 0, "rate": None, "low": None, "high": None}
    low, high = wilson(count, n, n / deff(counted))
    return {"count": count, "n": n, "rate": count / n, "low": low, "high": high}


def rates(answers: Sequence[Answer]) -> Json:
    names = outcomes_of("", "", "", "", "", "")
    return {"n": len(answers)} | {outcome: rate(answers, outcome) for outcome in names}


def comparison(answers: Sequence[Answer], a: str, b: str, outcome: str, primary: bool) -> Json:
    of_a, of_b = (cells((x for x in answers if x.model == model), outcome) for model in (a, b))

    def by_participant(side: list[Cell]) -> dict[str, Fraction]:
        found: defaultdict[str, list[int]] = defaultdict(list)
        for who, _, hit in side:
            found[who].append(hit)
        return {who: Fraction(sum(hits), len(hits)) for who, hits in found.items()}

    rates_a, rates_b = by_participant(of_a), by_participant(of_b)
    differences = [rates_a[who] - rates_b[who] for who in rates_a if who in rates_b]
    both = [(rates_a[who], rates_b[who]) for who in rates_a if who in rates_b]
    counts = sum(hit for _, _, hit in of_a), len(of_a), sum(hit for _, _, hit in of_b), len(of_b)
    found: Json = {"a": a, "b": b, "outcome": outcome, "primary": primary, "participants": len(differences)}
    found["rate_a"] = float(sum(x for x, _ in both) / len(both)) if both else None
    found["rate_b"] = float(sum(y for _, y in both) / len(both)) if both else None
    found |= paired_t(differences) | sign_flip(differences)
    found |= {"p_holm": None, "p_new_images": new_images(of_a, of_b)}
    found |= {"p_naive": fisher(*counts), "p_naive_z": pooled_z(*counts)}
    found["reason"] = None if found["low"] is not None else "there is no interval"
    found["reason_new_images"] = None if found["p_new_images"] is not None else "there is no test"
    return found


def comparisons(answers: Sequence[Answer], pack: str, study: Json) -> list[Json]:
    """Every two models, every outcome that the study asks about."""
    definition = study["definition"]
    planned = definition["primary"]
    asked = COMPARED if "plausibility" in definition["questions"] else COMPARED[:2]
    found = []
    for a, b in itertools.combinations(study["models"], 2):
        if pack == planned["pack"] and (b, a) == (planned["a"], planned["b"]):
            a, b = b, a
        for outcome in asked:
            primary = planned == {"pack": pack, "a": a, "b": b, "outcome": outcome}
            found.append(comparison(answers, a, b, outcome, primary))
    return found


def looks(answers: Sequence[Answer], complete: Sequence[str], study: Json) -> list[Json]:
    """The primary comparison over the first so many participants who finished: at declared looks and the target."""
    definition = study["definition"]
    planned = definition["primary"]
    declared = definition["looks"]["at"] if definition["looks"] else []
    sizes = [*declared, definition["target_participants"]]
    found = []
    for n, boundary in zip(sizes, boundaries(sizes), strict=True):
        seen = None
        if len(complete) >= n:
            those = frozenset(complete[:n])
            first = [a for a in answers if a.participant in those and a.pack == planned["pack"]]
            seen = comparison(first, planned["a"], planned["b"], planned["outcome"], True)
        crossed = None if seen is None else seen["p"] is not None and seen["p"] <= boundary
        found.append({"n": n, "boundary": boundary, "crossed": crossed, "comparison": seen})
    return found


# Views of one pack: by third, digit, pair and image, and how long it took


def views(answers: Sequence[Answer], stimuli: Sequence[dict[str, str]], study: Json) -> Json:
    primary, labels, models = study["definition"]["primary"]["outcome"], study["labels"], study["models"]
    of = {model: [a for a in answers if a.model == model] for model in models}
    return {
        "components": {model: components(own) for model, own in of.items()},
        "thirds": {
            model: {
                name: [rate([a for a in own if a.third == third], name) for third in range(3)]
                for name in COMPARED
            }
            for model, own in of.items()
        },
        "by_source": {
            model: {label: rate([a for a in own if a.source == label], primary) for label in labels}
            for model, own in of.items()
        },
        "by_target": {
            model: {label: rate([a for a in own if a.target == label], primary) for label in labels}
            for model, own in of.items()
        },
        "pairs": {
            model: [
                [pair([a for a in own if (a.source, a.target) == (s, t)], primary) for t in labels]
                for s in labels
            ]
            for model, own in of.items()
        },
        "label_ms": {model: times([a.label_ms for a in own]) for model, own in of.items()},
        "verdict_ms": {model: times([a.verdict_ms for a in own if a.verdict]) for model, own in of.items()},
        "images": list(images(answers, stimuli, primary)),
    }


def components(answers: Iterable[Answer]) -> dict[str, int]:
    """Each answer in the first of the parts that it fits."""
    found = dict.fromkeys(("target_first", "target_second", "none", "source", "other"), 0)
    for a in answers:
        if a.label == a.target:
            found["target_first"] += 1
        elif a.second == a.target:
            found["target_second"] += 1
        elif a.label == "none":
            found["none"] += 1
        elif a.label == a.source:
            found["source"] += 1
        else:
            found["other"] += 1
    return found


def pair(answers: Iterable[Answer], outcome: str) -> list[int]:
    hits = [hit for _, _, hit in cells(answers, outcome)]
    return [sum(hits), len(hits)]


def times(measured: Iterable[float | None]) -> Json:
    """How many could be measured, and their quantiles, by linear interpolation between the two nearest."""
    ms = sorted(t for t in measured if t is not None)
    quantiles = []
    for share in (0.1, 0.25, 0.5, 0.75, 0.9):
        if ms:
            place = share * (len(ms) - 1)
            below = math.floor(place)
            above = min(below + 1, len(ms) - 1)
            quantiles.append(ms[below] + (ms[above] - ms[below]) * (place - below))
    return {"n": len(ms), "quantiles": quantiles or None}


def images(answers: Sequence[Answer], stimuli: Sequence[dict[str, str]], primary: str) -> Iterator[Json]:
    """Every image that somebody has labeled, in the order of the stimuli; the interval: of the primary outcome."""
    by_image: defaultdict[tuple[str, ...], list[Answer]] = defaultdict(list)
    for a in answers:
        by_image[a.stimulus, a.model, a.image, a.target].append(a)
    for s in stimuli:
        own = by_image.get((s["stimulus"], s["model"], s["source_index"], s["target_label"]))
        if own is None:
            continue
        reasonable, counted = pair(own, primary)
        judged_reasonable, judged = pair(own, "mistake_reasonable_direct")
        low, high = clopper_pearson(reasonable, counted) if counted else (0.0, 1.0)
        yield {
            "sha256": s["stimulus"],
            "model": s["model"],
            "source_index": int(s["source_index"]),
            "source_label": s["source_label"],
            "target_label": s["target_label"],
            "n": len(own),
            "fooled": pair(own, "human_fooled")[0],
            "reasonable": reasonable,
            "counted": counted,
            "low": low,
            "high": high,
            "judged": judged,
            "judged_reasonable": judged_reasonable,
            "first": dict(Counter(a.label for a in own)),
            "second": dict(Counter(a.second for a in own if a.second)),
        }
