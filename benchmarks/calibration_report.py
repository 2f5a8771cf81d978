"""The calibration study as a page of the documentation: tables of its rows, and what they say."""

from collections.abc import Mapping, Sequence
from typing import Any

from app.printed import percent

Record = Mapping[str, Any]  # a row of calibration.json

MEANING = {
    "rate": "a model's rate",
    "a third": "its rate over a third of each session",
    "one digit": "its rate on the images of one digit",
    "one image": "the rate of one adversarial image",
    "sign-flip": "the sign-flip p, new participants on these images",
    "new images": "the p for new participants and new images",
    "paired t": "the paired-t interval, which the page calls approximate, new participants on these images",
}


def report(records: Sequence[Record], about: Mapping[str, Any]) -> str:
    """calibration.md."""
    spreads = "\n".join(
        f"- {name}: " + ", ".join(f"{effect.replace('_', ' x ')} {sd:g}" for effect, sd in sds.items())
        for name, sds in about["spreads"].items()
    )
    sizes = [r["replicates"] for r in records if r["quantity"] in ("rate", "sign-flip")]
    most, least = max(sizes), min(sizes)
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    return f"""# How well the intervals and p-values are calibrated

Written by `{about["command"]}`
({versions}; {about["seconds"]} s on one core of a shared machine). Do not edit by hand.
Every number is in `calibration.json`, with its standard error and the number of studies behind it: {most} for
comparisons, {least} for rates.

Studies are simulated where the truth is known. Answers depend by chance on the participant, the participant's
preference for a model, the source image, the target, and how these go with the model (`app/population.py`); the
images are those of the pack {about["pack"]}, assigned as a study assigns them (`app/assignment.py`); intervals and
p-values are the app's (`app/stats.py`). A 95 % interval should hold the truth in at least 95 % of studies, and a
valid test at 5 % raise a false alarm in at most 5 %. **Bold** is worse than that by more than three Monte Carlo
standard errors. Spreads of the effects, in logits:

{spreads}

{_reading(records)}
## Rates: coverage of 95 % intervals

For new participants and new images. Each cell: the page's (Wilson on n / deff, few clusters allowed for) / plain
Wilson / percentile bootstrap over participants. The last two are for contrast only.

{_table(records, "rates", ("rate", "plain Wilson", "bootstrap"))}

Studies in which the outcome never occurred, in %, where a bootstrap interval is [0, 0]:

{_table(records, "rates", ("zero counts",), only="2 %")}

Parts of the answers on the page: a third of each session / the images of one digit (five source images) / one
adversarial image (Clopper and Pearson's, for new participants on that image, over all images that anybody saw).

{_table(records, "rates", ("a third", "one digit", "one image"))}

## No difference on these images: false alarms at 5 %

Each cell: sign-flip p / its mid-p / new images p / Fisher / pooled z. In "images differ by model" single images are
easier or harder under one model, but on average over this pack the models are equal. Fisher and z are on the page
as naive, for comparison with older work only.

{_table(records, "these images", ("sign-flip", "mid-p", "new images", "Fisher", "z"))}

## No difference over all images, but one on these: false alarms at 5 %

Here single images are easier or harder under one model by chance, so that on the pack at hand one model is truly
ahead; over all images neither is. Only the new images p speaks about that. The sign-flip p notices the
difference on these images, rightly, and makes no claim about new ones: **bold** there is no fault, but a reason
not to read it so. Each cell: new images p / sign-flip p / Fisher / pooled z.

{_table(records, "new images", ("new images", "sign-flip", "Fisher", "z"))}

## Differences: coverage of the paired-t interval

For new participants on these images, where there is no difference, and where there is one. Studies whose
participants all have one difference get no interval and are left out.

{_table(records, "these images", ("paired t",))}

{_table(records, "new images", ("paired t",), heading="no difference over all images")}

{_table(records, "difference", ("paired t",), heading="a difference")}

## Looking before the end: false alarms at 5 %

The sign-flip test, no difference on these images: once at the end; after every participant from 6 to 50, as nobody
should; and at looks declared beforehand with O'Brien-Fleming bounds (2 of 20: after 10 and 20 participants;
4 of 20: after 6, 10, 15, 20; 2 of 50: after 25 and 50; 5 of 50: after every ten).

{_looks(records)}
"""


def _reading(records: Sequence[Record]) -> str:
    """What the tables say, from their numbers."""
    told = [r for r in records if (r["valid"] and r["kind"] != "share") or r["quantity"] == "paired t"]
    bold = [r for r in told if r["too_bold"]]
    lines = ["## In short", ""]
    for quantity, meaning in MEANING.items():
        shares = [r["share"] for r in told if r["quantity"] == quantity]
        beyond = [r for r in bold if r["quantity"] == quantity]
        what = (
            "coverage"
            if quantity in ("rate", "a third", "one digit", "one image", "paired t")
            else "false alarms"
        )
        lines.append(
            f"- {meaning[0].upper()}{meaning[1:]}: {what} {percent(min(shares))} to {percent(max(shares))} % over "
            f"{len(shares)} settings, {len(beyond) or 'none'} of them worse than nominal beyond chance"
            + (f" (worst: {_worst(beyond)})." if beyond else ".")
        )
    declared = [r for r in records if r["quantity"].startswith("declared")]
    peeking = [r["share"] for r in records if r["quantity"].startswith("after every")]
    lines.append(
        f"- Declared looks: false alarms {_range(declared)}; looking after every participant: "
        f"{percent(min(peeking))} to {percent(max(peeking))} %."
    )
    for quantity, name in (("mid-p", "The mid-p"), ("Fisher", "Fisher's test"), ("z", "The pooled z-test")):
        of = [r for r in records if r["quantity"] == quantity and r["table"] == "these images"]
        lines.append(
            f"- {name}, for which the page does not vouch, on these images: false alarms {_range(of)}."
        )
    for quantity, name in (
        ("plain Wilson", "A plain Wilson interval"),
        ("bootstrap", "A participant bootstrap"),
    ):
        of = [r for r in records if r["quantity"] == quantity]
        lines.append(f"- {name} of a rate would cover {_range(of)}.")
    lines += [
        "",
        "False alarms below 5 % are the price of an exact test of few participants, and of an assignment that",
        "shows all images equally often: they cost some power and mislead nobody.",
        "",
    ]
    return "\n".join(lines)


def _range(records: Sequence[Record]) -> str:
    shares = [r["share"] for r in records]
    return f"{percent(min(shares))} to {percent(max(shares))} %"


def _worst(records: Sequence[Record]) -> str:
    worst = max(records, key=lambda r: abs(r["share"] - (0.95 if r["kind"] == "coverage" else 0.05)))
    return f"{percent(worst['share'])} % at {worst['scenario']}, N = {worst['n']}"


def _table(
    records: Sequence[Record], table: str, quantities: Sequence[str], only: str = "", heading: str = ""
) -> str:
    """One line a scenario, one column a number of participants, the quantities in each cell."""
    here = [r for r in records if r["table"] == table and r["scenario"].startswith(only)]
    found = {(r["scenario"], r["quantity"], r["n"]): r for r in here}
    sizes = sorted({r["n"] for r in here})
    lines = [
        f"| {heading or 'rate'} | " + " | ".join(f"N = {n}" for n in sizes) + " |",
        "| :- |" + " -: |" * len(sizes),
    ]
    for scenario in dict.fromkeys(r["scenario"] for r in here):
        cells = (" / ".join(_cell(found.get((scenario, q, n))) for q in quantities) for n in sizes)
        lines.append(f"| {scenario} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _looks(records: Sequence[Record]) -> str:
    here = [r for r in records if r["table"] == "looks"]
    plans = list(dict.fromkeys(r["quantity"] for r in here))
    found = {(r["scenario"], r["quantity"]): r for r in here}
    lines = ["| rate | " + " | ".join(plans) + " |", "| :- |" + " -: |" * len(plans)]
    for scenario in dict.fromkeys(r["scenario"] for r in here):
        lines.append(
            f"| {scenario} | " + " | ".join(_cell(found.get((scenario, plan))) for plan in plans) + " |"
        )
    return "\n".join(lines)


def _cell(record: Record | None) -> str:
    if record is None:
        return "–"
    share = percent(record["share"])
    return f"**{share}**" if record["too_bold"] else share
