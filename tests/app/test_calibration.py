"""The calibration study at a small size: what it counts, and what the documentation says of its last full run."""

import json
import math
from typing import Any

import numpy as np
import pytest

from app.population import NO_SPREAD, Design, Spread, candidates, design, draw_images
from app.settings import ROOT
from benchmarks import calibration
from benchmarks.calibration import MODELS, Row, Tally, matched, over_people, paired_t
from benchmarks.calibration_report import report
from tests.packs import make_pack

RUN: dict[str, Any] = json.loads((ROOT / "docs" / "calibration.json").read_text())


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Design:
    pack = make_pack(tmp_path_factory.mktemp("packs") / "test-pack")
    return design(candidates([pack]), "test-pack", MODELS, 50, 2, seed=3)


def test_a_small_run_fills_every_table(drawn: Design, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every batch's first studies are checked against app.stats on the way."""
    monkeypatch.setattr(calibration, "SIZES", (6, 11))
    rng = np.random.default_rng(0)
    done: list[int] = []
    rows = [
        *calibration.rates(drawn, 2, rng, done.append),
        *calibration.comparisons(drawn, 12, rng, done.append),
        *calibration.looks(drawn, 12, rng, done.append),
    ]
    assert sum(done) == 12 * 2 + 30 * 12 + 6 * 12, "what the progress bar expects"
    records = [vars(row) | {"se": row.se, "too_bold": row.too_bold} for row in rows]
    text = report(records, RUN["about"])
    assert "nan" not in text
    assert "| – |" not in text
    assert {(r["table"], r["quantity"]) for r in records} == {
        (r["table"], r["quantity"]) for r in RUN["rows"]
    }


def test_a_share_is_too_bold_beyond_three_standard_errors() -> None:
    def row(kind: str, share: float) -> Row:
        return Row("t", "s", "q", 6, kind, True, share, 10_000)

    assert row("false alarms", 0.05).se == pytest.approx(0.00218, abs=1e-5)
    assert [row("false alarms", x).too_bold for x in (0.0, 0.055, 0.058, 1.0)] == [False, False, True, True]
    assert [row("coverage", x).too_bold for x in (1.0, 0.945, 0.942, 0.0)] == [False, False, True, True]
    assert not row("share", 0.5).too_bold


def test_a_tally_adds_up_and_leaves_out_what_has_no_cases() -> None:
    tally = Tally()
    tally.add("p", 6, "false alarms", True, np.array([True, False]))
    tally.add("p", 6, "false alarms", True, np.array([False, False]))
    tally.add("t", 6, "coverage", True, np.array([], bool))
    assert tally.rows("table", "scenario") == [
        Row("table", "scenario", "p", 6, "false alarms", True, 0.25, 4)
    ]


def test_matched_models_have_one_rate_on_these_images(drawn: Design) -> None:
    spread = Spread(1.0, 0.5, 0.5, 1.0, 0.5, 1.0)
    images = draw_images(np.random.default_rng(1), 5, drawn.source, 2, spread)
    base = matched(np.array([-1.0, 3.0]), images, drawn, spread)
    on_these = over_people(base[:, 0] + images, spread)
    averages = np.einsum("rpm,p->rm", on_these, drawn.weight)
    assert np.allclose(averages[:, 0], averages[:, 1], atol=1e-9)
    assert averages[:, 0] == pytest.approx(over_people(-1 + images[..., 0], spread) @ drawn.weight)
    assert over_people(np.array([0.3]), NO_SPREAD)[0] == pytest.approx(1 / (1 + math.exp(-0.3)), abs=1e-6)


def test_no_interval_where_all_differences_are_equal() -> None:
    mean, half = paired_t(np.array([[0.1, 0.1, 0.1], [0.0, 0.1, 0.2]]))
    assert mean.tolist() == pytest.approx([0.1, 0.1])
    assert half[0] == 0
    assert half[1] == pytest.approx(4.3027 * 0.1 / math.sqrt(3), rel=1e-4)


def test_the_document_is_that_of_the_numbers_beside_it() -> None:
    assert (ROOT / "docs" / "calibration.md").read_text() == report(RUN["rows"], RUN["about"])


def test_the_sizes_and_replicates_are_those_that_were_promised() -> None:
    comparisons = [r for r in RUN["rows"] if r["quantity"] == "sign-flip"]
    assert {r["n"] for r in comparisons} == {6, 11, 20, 50}
    assert min(r["replicates"] for r in comparisons) >= 5000
