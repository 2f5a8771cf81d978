"""Work out every number of results.json anew from the CSV files of this export, and say which ones differ.

    python recompute.py [FOLDER] [--write OUT.json]

FOLDER is the export (default: where this script lies). Needs Python 3.11 or newer, NumPy and SciPy, and nothing of
the program that made the export: it is written to be read, and to disagree where that program is wrong. The answers
are counted in recompute_answers.py, the statistics are in recompute_methods.py. Exit status: 0 where nothing
differs, 1 where something does.
"""

import argparse
import hashlib
import json
import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from statistics import median
from typing import Any

from recompute_answers import (
    Answer,
    comparisons,
    looks,
    number,
    rates,
    read_answers,
    read_csv,
    views,
)
from recompute_methods import Json, holm

DISTURBANCES = ("image_retries", "hidden_times", "too_early", "held_keys")
GONE_AFTER = timedelta(minutes=30)  # an unfinished session this long silent counts as left
RELATIVE, ABSOLUTE = 1e-9, 1e-12  # what two computations of one number in floating point may differ by
DIFFERENCES = ("difference", "low", "high")  # which may be zero but for rounding
# Why there is no interval or no test is said in words, which are not worked out again: only whether there is one.
WORDS = ("reason", "reason_new_images")

Row = Mapping[str, str]


def recompute(folder: Path, problems: list[str]) -> Json:
    """The content of results.json; what contradicts itself in the export is added to `problems`."""
    study = json.loads((folder / "study" / "study.json").read_text(encoding="utf-8"))
    check_hashes(folder, study, problems)
    responses, people = read_csv(folder, "responses"), read_csv(folder, "participants")
    answers = read_answers(folder, study, problems)
    rows: dict[str, list[Row]] = {p["participant"]: [] for p in people}
    for row in responses:
        rows[row["participant"]].append(row)
    states = {p["participant"]: state_of(p, rows[p["participant"]], study) for p in people}
    excluded = {p["participant"]: excluded_because(p, rows[p["participant"]], study) for p in people}
    for p in people:
        if p["excluded_reason"] != (excluded[p["participant"]] or ""):
            problems.append(f"excluded_reason of {p['participant']}")
        if p["state"] != states[p["participant"]]:
            problems.append(f"state of {p['participant']}")
        for column, value in monitored(p, states[p["participant"]], rows[p["participant"]], study).items():
            if p[column] == "" or value is None:
                differs = p[column] != "" or value is not None
            else:
                differs = not math.isclose(float(p[column]), value, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
            if differs:
                problems.append(f"{column} of {p['participant']}")
    for row in responses:
        if row["excluded"] != str(int(excluded[row["participant"]] is not None)):
            problems.append(f"excluded of {row['participant']}, position {row['position']}")

    finished = sorted(
        (p for p in people if p["finished_at"]), key=lambda p: (instant(p["finished_at"]), int(p["number"]))
    )
    complete = [p["participant"] for p in finished if not excluded[p["participant"]]]
    target = study["definition"]["target_participants"]
    masked = len(complete) < target and not study["seen"]  # what was once shown stays so, whoever withdraws
    included = [a for a in answers if not excluded[a.participant]]
    return {
        **{key: study[key] for key in ("study", "version", "data", "computed_at")},
        "masked": masked,
        "unmasked": study["unmasked"],
        "target_participants": target,
        "participants": {
            "started": len(people),
            "finished": len(finished),
            "excluded": sum(reason is not None for reason in excluded.values()),
            "withdrawn": sum(p["state"] == "withdrawn" for p in people),
            "included": len(complete),
        },
        "monitoring": monitoring(
            people,
            states,
            excluded,
            answers,
            read_csv(folder, "trials"),
            instant(study["computed_at"]),
        ),
        "responses": len(answers),
        "looks": looks(answers, complete, study),
        "packs": packs(folder, included, complete, masked, study),
    }


def packs(
    folder: Path, included: Sequence[Answer], complete: Sequence[str], masked: bool, study: Json
) -> Json:
    stimuli = read_csv(folder, "stimuli")
    found: Json = {}
    done = frozenset(complete)
    for pack in study["packs"]:
        here = [a for a in included if a.pack == pack]
        shown = [s for s in stimuli if s["pack"] == pack]
        whole = [a for a in here if a.participant in done]
        found[pack] = {
            "models": {model: rates([a for a in here if a.model == model]) for model in study["models"]},
            "together": rates(here),
            "comparisons": [] if masked else comparisons(whole, pack, study),
            "views": None if masked else views(here, shown, study),
        }
    holm([c for pack in found.values() for c in pack["comparisons"]])
    return found


# Participants


def instant(cell: str) -> datetime:
    return datetime.fromisoformat(cell)


def state_of(person: Row, own: Sequence[Row], study: Json) -> str:
    """Where a participant is, from their `own` rows of the responses."""
    definition = study["definition"]
    if person["state"] == "withdrawn":  # the answers are deleted: this is all that is known
        return "withdrawn"
    if person["finished_at"]:
        return "finished"
    if len(own) < definition["practice"] + definition["trials"] + definition["controls"]:
        return "labelling"
    to_judge = definition["trials"] if "plausibility" in definition["questions"] else 0
    return "judging" if sum(row["plausible"] != "" for row in own) < to_judge else "commenting"


def excluded_because(person: Row, own: Sequence[Row], study: Json) -> str | None:
    """The first rule of the study file that a finished participant meets, by their `own` rows of the responses."""
    if not person["finished_at"]:
        return None
    definition = study["definition"]
    rules = definition["exclusions"]
    main = [row for row in own if row["kind"] == "main"]
    times = [float(row["label_rt_ms"]) for row in main if row["label_rt_ms"]]
    fastest, most, fewest = (
        rules[name] for name in ("min_median_label_rt_ms", "max_same_label_share", "min_controls_right")
    )
    if fastest is not None and times and median(times) < fastest:
        return f"median response time under {fastest:g} ms"
    if most is not None and main and max(Counter(row["label"] for row in main).values()) / len(main) > most:
        return f"one label in more than {100 * most:g} % of answers"
    right = sum(row["kind"] == "control" and row["label"] == row["source_label"] for row in own)
    if fewest is not None and right < fewest:
        return f"fewer than {fewest} of {definition['controls']} control images read right"
    return None


def monitored(person: Row, state: str, own: Sequence[Row], study: Json) -> dict[str, float | None]:
    """What the page's list of participants says of one, worked out of their `own` rows of the responses."""
    names = ("answers", "answers_asked", "minutes", "median_label_rt_ms", "controls_right")
    if state == "withdrawn":
        return dict.fromkeys(names)
    definition = study["definition"]
    to_judge = definition["trials"] if "plausibility" in definition["questions"] else 0
    until = person["finished_at"] or person["last_seen_at"]
    times = [float(row["label_rt_ms"]) for row in own if row["kind"] == "main" and row["label_rt_ms"]]
    values = (
        len(own) + sum(row["plausible"] != "" for row in own),
        definition["practice"] + definition["trials"] + definition["controls"] + to_judge,
        (instant(until) - instant(person["started_at"])).total_seconds() / 60,
        median(times) if times else None,
        sum(row["kind"] == "control" and row["label"] == row["source_label"] for row in own),
    )
    return dict(zip(names, values, strict=True))


def monitoring(
    people: Sequence[Row],
    states: Mapping[str, str],
    excluded: Mapping[str, str | None],
    answers: Sequence[Answer],
    trials: Sequence[Row],
    at: datetime,
) -> Json:
    """Who is at it, who left, how long it took, and what disturbed it, at the instant of the export."""
    minutes = [
        (instant(p["finished_at"]) - instant(p["started_at"])).total_seconds() / 60
        for p in people
        if p["finished_at"]
    ]
    dropouts = dict.fromkeys(("labelling", "judging", "commenting"), 0)
    active = 0
    for p in people:
        state = states[p["participant"]]
        if state not in dropouts:
            continue
        if at - instant(p["last_seen_at"]) > GONE_AFTER:
            dropouts[state] += 1
        else:
            active += 1
    disturbed = dict.fromkeys(DISTURBANCES, 0)
    for trial in trials:
        for part in ("label", "plausibility"):
            for name in DISTURBANCES:
                disturbed[name] += (number(trial[f"{part}_{name}"]) or 0) > 0
    return {
        "active": active,
        "dropouts": dropouts,
        "median_minutes": median(minutes) if minutes else None,
        "longest_minutes": max(minutes, default=None),
        "excluded": dict(Counter(reason for reason in excluded.values() if reason)),
        "disturbed": disturbed,
        "unmeasured": sum(a.label_ms is None for a in answers),
    }


def check_hashes(folder: Path, study: Json, problems: list[str]) -> None:
    """The version is the hash of the frozen study file, which names the hash of each pack's manifest."""
    frozen = (folder / "study" / "frozen.json").read_bytes()
    if hashlib.sha256(frozen).hexdigest() != study["sha256"] or study["sha256"][:12] != study["version"]:
        problems.append("study/frozen.json is not the study of this version")
    for pack, sha256 in json.loads(frozen)["packs"].items():
        manifest = json.loads((folder / "packs" / pack / "manifest.json").read_text(encoding="utf-8"))
        del manifest["pack_sha256"]
        text = json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        if hashlib.sha256(text.encode()).hexdigest() != sha256:
            problems.append(f"packs/{pack}/manifest.json is not the pack of this version")


# Comparing and printing


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in a JSON that is no object and no list, with where it stands; empty ones too."""
    if isinstance(tree, dict | list) and tree:
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from leaves(value, f"{path}/{key}" if path else str(key))
    else:
        yield path, tree


def recorded(found: Json) -> tuple[str, ...]:
    """Where results.json says what was recorded when a look was first seen, and no data here can say it again.

    That is when it was seen, and, where somebody withdrew since (`still` is false), what it showed.
    """
    paths: list[str] = []
    for i, look in enumerate(found.get("looks", [])):
        names = ["seen_at", "still"] + (["crossed", "comparison"] if look.get("still") is False else [])
        paths += [f"looks/{i}/{name}" for name in names]
    return tuple(paths)


def differing(found: Json, expected: Json) -> Iterator[str]:
    """One line for each leaf in which the two differ."""
    records = recorded(found)
    ours, theirs = (
        {path: value for path, value in leaves(tree) if not path.startswith(records)}
        for tree in (expected, found)
    )
    for path in sorted(ours.keys() | theirs.keys()):
        if path not in ours:
            yield f"{path}: {theirs[path]!r} in results.json, and nothing recomputed"
        elif path not in theirs:
            yield f"{path}: not in results.json, recomputed {ours[path]!r}"
        elif not same(path, ours[path], theirs[path]):
            yield f"{path}: {theirs[path]!r} in results.json, recomputed {ours[path]!r}"


def same(path: str, ours: Any, theirs: Any) -> bool:
    key = path.rsplit("/", 1)[-1]
    if key in WORDS:
        return (ours is None) == (theirs is None)
    if is_number(ours) and is_number(theirs):
        return math.isclose(
            ours, theirs, rel_tol=RELATIVE, abs_tol=ABSOLUTE if key in DIFFERENCES else 0
        ) and printed(key, ours) == printed(key, theirs)
    return type(ours) is type(theirs) and bool(ours == theirs)


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def printed(key: str, value: float) -> str:
    """As the page prints it: rounded half up from the shortest decimal that the number stands for."""
    if key in ("rate", "rate_a", "rate_b", "low", "high", "difference"):
        return str((100 * Decimal(repr(value))).quantize(Decimal("0.1"), ROUND_HALF_UP))
    if key == "p" or key.startswith("p_"):
        return (
            "< 0.0001"
            if value < 0.0001
            else str(Decimal(repr(value)).quantize(Decimal("0.0001"), ROUND_HALF_UP))
        )
    return ""  # others are printed as they are, or with fewer digits than are compared


def table(results: Json) -> Iterator[str]:
    """The main numbers, as the page has them."""
    people = results["participants"]
    yield (
        ", ".join(f"{count} {name}" for name, count in people.items()) + f"; {results['responses']} responses"
    )
    for name, pack in results["packs"].items():
        yield f"\n{name}: rates in % (95 % interval; count of n)"
        for outcome in next(iter(pack["models"].values())):
            if outcome == "n":
                continue
            yield f"  {outcome}"
            for model, own in pack["models"].items():
                r = own[outcome]
                if r["n"]:
                    rate, low, high = (printed("rate", r[key]) for key in ("rate", "low", "high"))
                    yield f"    {model:24}{rate:>6} ({low} to {high}; {r['count']} of {r['n']})"
        if results["masked"]:
            yield "  comparisons: masked until the target N is reached"
        for c in pack["comparisons"]:
            numbers = ", ".join(
                f"{key} {'-' if c[key] is None else printed(key, c[key])}"
                for key in ("difference", "low", "high", "p", "p_mid", "p_holm", "p_new_images", "p_naive")
            )
            yield f"  {'primary: ' if c['primary'] else ''}{c['a']} - {c['b']}, {c['outcome']}: {numbers}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Recompute every number of results.json from the CSV files.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).resolve().parent)
    parser.add_argument("--write", type=Path, metavar="OUT.json", help="write what was recomputed")
    args = parser.parse_args()
    problems: list[str] = []
    expected = recompute(args.folder, problems)
    found = json.loads((args.folder / "results.json").read_text(encoding="utf-8"))
    if args.write:
        args.write.write_text(json.dumps(expected, indent=1) + "\n", encoding="utf-8")
    print("\n".join(table(expected)))
    different = list(differing(found, expected))
    records = recorded(found)
    numbers = sum(is_number(value) and not path.startswith(records) for path, value in leaves(expected))
    for look in found.get("looks", []):
        if look.get("still") is False:
            print(f"\nlook at {look['n']}: not recomputed, as somebody has withdrawn since it was seen")
    print(f"\n{numbers} numbers recomputed, {len(different)} differ")
    for line in different + [f"the files contradict each other: {problem}" for problem in problems]:
        print(line)
    return 1 if different or problems else 0


if __name__ == "__main__":
    sys.exit(main())
