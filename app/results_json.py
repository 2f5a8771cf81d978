"""The results as JSON: DESIGN's contract, and with it every other number that the page shows."""

from typing import Any

from app.results import Results
from app.stats import Rate
from app.views import Views


def results_json(results: Results) -> dict[str, Any]:
    """The results of DESIGN's contract; rates and p-values in full precision, null where there is none."""
    return {
        "study": results.study.slug,
        "version": results.study.version,
        "data": results.data,
        "computed_at": results.summary.at.isoformat(),
        "masked": results.masked,
        "unmasked": {"at": results.unmasking.at.isoformat(), "n": results.unmasking.n}
        if results.unmasking
        else None,
        "target_participants": results.definition.target_participants,
        "participants": {
            "started": results.started,
            "finished": results.finished,
            "excluded": results.excluded,
            "withdrawn": results.withdrawn,
            "included": results.included,
        },
        "monitoring": {
            "active": results.summary.active,
            "dropouts": results.summary.dropouts,
            "median_minutes": results.summary.median_minutes,
            "longest_minutes": results.summary.longest_minutes,
            "excluded": results.summary.excluded,
            "disturbed": results.summary.disturbed,
            "unmeasured": results.summary.unmeasured,
        },
        "responses": results.responses,
        "looks": [
            {
                "n": look.n,
                "boundary": look.boundary,
                "crossed": look.crossed if look.found else None,
                "seen_at": look.seen_at.isoformat() if look.seen_at else None,
                "still": look.still,
                "comparison": vars(look.found).copy() if look.found else None,
            }
            for look in results.looks
        ],
        "packs": {
            name: {
                "models": {model: _with_n(rates) for model, rates in pack.models.items()},
                "together": _with_n(pack.together),
                "comparisons": [vars(c).copy() for c in pack.comparisons],
                "views": _views(pack.views) if pack.views else None,
            }
            for name, pack in results.packs.items()
        },
    }


def _views(found: Views) -> dict[str, Any]:
    return {
        "components": found.components,
        "thirds": {
            model: {name: [_rate(rate) for rate in rates] for name, rates in by_outcome.items()}
            for model, by_outcome in found.thirds.items()
        },
        "by_source": {model: _rates(rates) for model, rates in found.by_source.items()},
        "by_target": {model: _rates(rates) for model, rates in found.by_target.items()},
        "pairs": found.pairs,
        "label_ms": {model: vars(times) for model, times in found.label_ms.items()},
        "verdict_ms": {model: vars(times) for model, times in found.verdict_ms.items()},
        "images": [vars(image) for image in found.images],
    }


def _with_n(rates: dict[str, Rate]) -> dict[str, Any]:
    """All rates of a model, and `n`: its answered main trials."""
    return {"n": rates["human_fooled"].n} | _rates(rates)


def _rates(rates: dict[str, Rate]) -> dict[str, Any]:
    return {name: _rate(rate) for name, rate in rates.items()}


def _rate(rate: Rate) -> dict[str, Any]:
    return {"count": rate.count, "n": rate.n, "rate": rate.rate, "low": rate.low, "high": rate.high}
