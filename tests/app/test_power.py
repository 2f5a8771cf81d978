"""Power: the batched tests are the app's tests, the simulated studies are the app's studies, command and page."""

import json
import math
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from app import stats
from app.bot import PAPER_REASONABLE
from app.clusters import Clustered, Sample
from app.differences import sign_flip
from app.population import NO_SPREAD, Design, Ints, Spread, candidates, design, draw_answers, intercept
from app.power import (
    Power,
    bound,
    curve,
    detectable,
    detectable_said,
    headline_p,
    new_images_p,
    paper_rate,
    rule,
    sign_flips,
    smallest,
)
from app.power_figure import describe, figure
from app.printed import p_value
from app.serving import prepare
from app.settings import Settings
from ml.pack import Pack
from tests.app.reading import Page
from tests.app.test_cli import app, assert_one_line
from tests.packs import make_pack

# Power is computed from the packs' files and the study's; nothing of it is asked of a database.
pytestmark = pytest.mark.quickly("sqlite")

PAIR = ("undefended", "gradient_regularized")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Design:
    pack = make_pack(tmp_path_factory.mktemp("packs") / "test-pack")
    return design(candidates([pack]), "test-pack", PAIR, 30, 4, seed=3)


# The batched tests


@given(
    arrays.arrays(
        np.int64,
        st.tuples(st.integers(1, 5), st.integers(1, 40)),
        elements=st.integers(-10, 10),
    )
)
def test_sign_flips_are_stats_sign_flip(differences: Ints) -> None:
    p, p_mid = sign_flips(differences)
    for i, row in enumerate(differences.tolist()):
        expected = sign_flip([Fraction(x, 10) for x in row])
        assert expected is not None
        assert p[i] == pytest.approx(expected.p, abs=1e-12)
        assert p_mid[i] == pytest.approx(expected.p_mid, abs=1e-12)


def test_sign_flips_of_certain_sums_and_of_nothing() -> None:
    p, p_mid = sign_flips(np.full((1, 10), 3))
    assert p[0] == pytest.approx(2 / 1024, rel=1e-9)
    assert p_mid[0] == pytest.approx(1 / 1024, rel=1e-9)
    assert sign_flips(np.zeros((2, 4), np.int64))[0].tolist() == [1, 1]
    assert sign_flips(np.zeros((0, 4), np.int64))[0].size == 0
    many = sign_flips(np.ones((1, 500), np.int64))[0]
    assert 0 < many[0] < 1e-12


@pytest.mark.parametrize("share", [1.0, 0.5])
@hypothesis_settings(max_examples=25)
@given(seed=st.integers(0, 10**6), n=st.integers(2, 12), rate=st.sampled_from([0.02, 0.3, 0.9]))
def test_the_batched_test_for_new_images_is_that_of_stats(
    drawn: Design, share: float, seed: int, n: int, rate: float
) -> None:
    """Also where other packs take some of the cells."""
    rng = np.random.default_rng(seed)
    which = np.arange(3)
    pair = np.where(rng.random(drawn.pair[which, :n].shape) < share, drawn.pair[which, :n], -1)
    thinned = Design(pair, drawn.source, drawn.weight)
    answers = draw_answers(rng, thinned, which, np.array([intercept(rate, 1.0)] * 2), Spread())
    images, shown = thinned.source[pair], pair >= 0
    assert not np.any(answers & ~shown)
    found = new_images_p(answers, images, shown)
    for i in which:
        people = np.broadcast_to(np.arange(n)[:, None], shown.shape[1:3])
        a, b = (
            Sample.of_answers(people[seen], images[i, ..., m][seen], answers[i, ..., m][seen])
            for m in (0, 1)
            for seen in (shown[i, ..., m],)
        )
        expected = stats.new_images_test(Clustered.of(a, b)).p
        if expected is None:
            assert np.isnan(found[i])
        else:
            assert found[i] == pytest.approx(expected, rel=1e-9)


def test_the_headline_of_a_study_of_several_packs_is_close_to_exact(drawn: Design) -> None:
    rng = np.random.default_rng(5)
    pair = np.where(rng.random((4, 12, 10, 2)) < 0.5, drawn.pair[:, :12], -1)
    thinned = Design(pair, drawn.source, drawn.weight)
    answers = draw_answers(rng, thinned, np.arange(4), np.array([-0.5, 0.3]), NO_SPREAD)
    found = headline_p(answers, pair >= 0)
    for i in range(4):
        counts, n = answers[i].sum(1).tolist(), (pair[i] >= 0).sum(1).tolist()
        both = [Fraction(a, x) - Fraction(b, y) for (a, b), (x, y) in zip(counts, n, strict=True) if x and y]
        expected = sign_flip(both)
        assert expected is not None
        assert found[i] == pytest.approx(
            expected.p, abs=4 * math.sqrt(expected.p * (1 - expected.p) / 1999) + 1e-3
        )


# The simulated studies


def test_a_simulated_study_obeys_the_assignment(pack: Pack, drawn: Design) -> None:
    stimuli = {(s.source_index, s.target_label): s.source_label for s in pack.stimuli}
    names, labels = sorted(stimuli), sorted(pack.labels)
    assert drawn.pair.shape == (4, 30, 10, 2)
    assert drawn.weight.sum() == pytest.approx(1)
    assert len({drawn.pair[d].tobytes() for d in range(4)}) == 4
    for d in range(4):
        for person in drawn.pair[d]:
            for slot, label in enumerate(labels):
                (source_a, _), (source_b, _) = (names[i] for i in person[slot])
                assert source_a != source_b, "a participant meets no source image twice"
                assert {stimuli[names[i]] for i in person[slot]} == {label}
        for model in (0, 1):
            shown = Counter(drawn.pair[d, :, :, model].ravel().tolist())
            assert max(shown.values()) - min(shown.get(i, 0) for i in range(len(names))) <= 2


def test_several_packs_share_the_cells(tmp_path: Path) -> None:
    packs = [make_pack(tmp_path / name, name, labels=tuple("012"), targets=2) for name in ("one", "two")]
    drawn = design(candidates(packs), "two", PAIR, 40, 1, seed=0)
    assert 0.35 < float((drawn.pair >= 0).mean()) < 0.65
    assert len(drawn.source) == 18
    powers = curve(drawn, (0.2, 0.9), NO_SPREAD, [40], 20, 0)
    assert powers[0].sign_flip == 1


def test_what_a_pack_lacks_is_said(pack: Pack) -> None:
    with pytest.raises(ValueError, match=r"test-pack has no model 'vgg'; it has distilled, gradient"):
        design(candidates([pack]), "test-pack", ("undefended", "vgg"), 2, 1, 0)


def test_rates_without_spread_are_met(drawn: Design) -> None:
    base = np.array([intercept(0.02, 0), intercept(0.418, 0)])
    answers = draw_answers(np.random.default_rng(0), drawn, np.arange(400) % 4, base, NO_SPREAD)
    assert answers.mean((0, 1, 2)) == pytest.approx([0.02, 0.418], abs=0.005)


# Power


def test_without_a_difference_power_is_at_most_alpha(drawn: Design) -> None:
    for spread in (NO_SPREAD, Spread(pair_model=0, image_model=0)):
        for power in curve(drawn, (0.4, 0.4), spread, [6, 20, 30], 2000, 1):
            assert power.sign_flip <= 0.05 + 3 * power.sign_flip_se
            assert power.new_images <= 0.05 + 3 * power.new_images_se


def test_power_grows_to_certainty_and_five_can_show_nothing(drawn: Design) -> None:
    powers = curve(drawn, (0.26, 0.6), Spread(), [5, 6, 12, 30], 500, 1)
    values = [p.sign_flip for p in powers]
    assert values == sorted(values)
    assert values[0] == 0, "with 5 participants p is at least 0.0625"
    assert values[-1] > 0.99
    certain = curve(drawn, (0.0, 1.0), Spread(), [6, 30], 50, 1)
    assert [p.sign_flip for p in certain] == [1, 1]
    assert all(0 < p.sign_flip_se < 0.03 for p in certain)


def test_a_p_of_exactly_alpha_counts(drawn: Design) -> None:
    assert curve(drawn, (0.0, 1.0), NO_SPREAD, [5], 10, 0, alpha=0.0625)[0].sign_flip == 1
    assert curve(drawn, (0.0, 1.0), NO_SPREAD, [5], 10, 0, alpha=0.0624)[0].sign_flip == 0


def test_the_seed_gives_the_same_again(drawn: Design) -> None:
    one, two, other = (
        curve(drawn, (0.26, 0.418), Spread(), [6, 12], 300, seed, progress=seed == 2) for seed in (1, 1, 2)
    )
    assert one == two != other


def test_the_smallest_number_is_that_from_which_on_power_suffices() -> None:
    powers = [
        Power(n, power, 0.01, 0.5, 0.01) for n, power in ((10, 0.81), (12, 0.79), (14, 0.9), (16, 0.95))
    ]
    assert smallest(powers, 0.8) == powers[2]
    assert smallest(powers, 0.99) is None
    assert smallest(powers[::-1], 0.5) == powers[0]


def test_looks_are_for_the_target_alone(drawn: Design) -> None:
    assert rule(30) == [(30, 0.05)]
    assert rule(30, 0.01, [30]) == [(30, 0.01)]
    assert rule(20, looks=[15, 30]) == [(20, 0.05)]
    (first, early), (last, late) = rule(30, looks=[15, 30])
    assert (first, last) == (15, 30)
    assert early == pytest.approx(0.0052, abs=5e-5), "O'Brien and Fleming's 2.797 and 1.977"
    assert late == pytest.approx(0.0480, abs=5e-5)


def test_the_power_at_the_target_is_that_of_any_look_crossing_its_boundary(drawn: Design) -> None:
    looks, n, replicates, rates, spread = [12, 20, 30], 30, 400, (0.26, 0.36), Spread(participant_model=0.8)
    with_looks = curve(drawn, rates, spread, [20, n], replicates, 7, looks=looks)
    without = curve(drawn, rates, spread, [20, n], replicates, 7)
    assert with_looks[0] == without[0]
    which = np.arange(replicates) % len(drawn.pair)
    base = np.array([intercept(rate, spread.total) for rate in rates])
    answers = draw_answers(np.random.default_rng(7), drawn, which, base, spread)
    rejected, at_last = 0, 0
    for study in answers.sum(2, dtype=np.int64)[..., 0] - answers.sum(2, dtype=np.int64)[..., 1]:
        tests = [sign_flip([Fraction(x, 10) for x in study[:k].tolist()]) for k in looks]
        crossed = [
            t is not None and t.p <= boundary
            for t, (_, boundary) in zip(tests, rule(n, looks=looks), strict=True)
        ]
        rejected += any(crossed)
        at_last += crossed[-1]
    assert with_looks[1].sign_flip == rejected / replicates
    assert rejected > at_last, "some cross early only"


def test_looks_raise_no_more_false_alarms_than_one_test(drawn: Design) -> None:
    (power,) = curve(drawn, (0.4, 0.4), NO_SPREAD, [30], 2000, 1, looks=[10, 20, 30])
    assert power.sign_flip <= 0.05 + 3 * power.sign_flip_se


def test_the_detectable_difference_is_where_the_power_is_that_wanted(drawn: Design) -> None:
    spread, looks = Spread(), [10, 20]
    of_20 = Design(drawn.pair[:, :20], drawn.source, drawn.weight)
    found = {
        rates: detectable(drawn, rates, spread, 20, 0.8, 500, 3, looks=looks)
        for rates in ((0.3, 0.4), (0.3, 0.3), (0.6, 0.5))
    }
    up, down = found[0.3, 0.4], found[0.6, 0.5]
    assert up is not None
    assert down is not None
    assert up == found[0.3, 0.3], "how far the second rate lies is not asked, only on which side"
    assert 0.3 < down < 0.45 < up < 0.6
    for base, rate, nearer in ((0.3, up, up - 0.003), (0.6, down, down + 0.003)):
        at, before = (curve(of_20, (base, r), spread, [20], 500, 3, looks=looks)[0] for r in (rate, nearer))
        assert before.sign_flip < 0.8 <= at.sign_flip
    assert detectable(drawn, (0.3, 0.4), spread, 5, 0.8, 50, 3) is None, (
        "5 participants cannot give a p of 0.05"
    )
    assert detectable(drawn, (0.1, 0.05), spread, 6, 0.8, 50, 3) is None


def test_the_detectable_difference_in_words() -> None:
    assert detectable_said((0.26, 0.4), 0.4234, 20, 0.8) == (
        "At the target of 20 participants the smallest difference with a power of 80.0 % is about 16 percentage "
        "points: 26.0 % against 42 %."
    )
    assert detectable_said((0.02, 0.02), 0.0485, 20, 0.8).endswith(
        "2.9 percentage points: 2.0 % against 4.9 %."
    )
    assert detectable_said((0.1, 0.05), None, 20, 0.9) == (
        "At the target of 20 participants no rate below 10.0 % is told apart from it with a power of 90.0 %."
    )


def test_where_all_studies_agree_a_bound_stands_for_the_error() -> None:
    assert bound(0.5, 100) is None
    none, every = bound(0.0, 100), bound(1.0, 100)
    assert none is not None
    assert every is not None
    assert (1 - none) ** 100 == pytest.approx(0.05), "studies that would all miss, 1 time in 20"
    assert every == pytest.approx(1 - none)


def test_the_figure_says_itself_in_words() -> None:
    powers = [Power(10, 0.4, 0.01, 0.35, 0.01), Power(20, 0.8, 0.01, 0.75, 0.01)]
    page = Page(figure(powers, 0.8, "Power", inline=True))
    assert page.figures[0][0] == f"Power. {describe(powers)}"
    assert "20 participants 80.0 % (new images too: 75.0 %)" in page.figures[0][0]
    assert {"these images", "new images too", "80.0 %"} <= set(page.figures[0][1])
    assert figure(powers, 0.8, "Power").startswith("<?xml")


def test_a_model_that_the_paper_does_not_have_needs_a_rate() -> None:
    assert paper_rate("distilled", "human_fooled") == ("distilled", 0.0)
    assert paper_rate("undefended", "mistake_reasonable")[1] == PAPER_REASONABLE["undefended"]
    with pytest.raises(ValueError, match="double_backprop=RATE"):
        paper_rate("double_backprop", "mistake_reasonable")


# python -m app power

QUICK = ("power", "--study", "test", "--replicates", "60", "--participants", "6", "25")


def test_power_prints_the_table_and_writes_the_figure(settings: Settings, tmp_path: Path) -> None:
    done = app(settings, *QUICK, "--b", "gradient_regularized=0.9", "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "mistake reasonable: undefended 26.0 % against gradient regularized 90.0 %, test-pack"
    assert [line.split()[0] for line in lines[4:6]] == ["6", "25"]
    assert lines[5].split()[1:5] == ["100.0", "%", "(>=", "95.1)"]
    assert lines[6].startswith("N counts complete, included participants")
    assert lines[7] == (
        "At the target of 3 participants no rate above 26.0 % is told apart from it with a power of 80.0 %."
    )
    assert lines[-1].startswith(("6 participants are the fewest of", "25 participants are the fewest of"))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["power.json", "power.svg"]
    numbers = json.loads((tmp_path / "out" / "power.json").read_text())
    assert (numbers["outcome"], numbers["target"], numbers["detectable"]) == ("mistake_reasonable", 3, None)
    assert numbers["looks"] == [{"n": 3, "boundary": 0.05}]
    alone = app(settings, *QUICK, "--out", str(tmp_path / "one.svg"), "--a", "undefended=0.418")
    assert (tmp_path / "one.svg").read_text().startswith("<?xml")
    assert "More than 25 participants are needed for a power of 80.0 %" in alone.stdout
    again = app(settings, *QUICK, "--a", "undefended=0.418")
    assert again.stdout == alone.stdout


def with_looks(settings: Settings, target: int, at: list[int]) -> None:
    path = settings.studies / "test.toml"
    study = path.read_text().replace("target_participants = 3", f"target_participants = {target}")
    path.write_text(study.replace("[exclusions]", f"[looks]\nat = {at}\n\n[exclusions]"))


def test_power_knows_the_target_and_the_looks_of_a_study(settings: Settings) -> None:
    with_looks(settings, 24, [12, 18])
    done = app(settings, "power", "--study", "test", "--replicates", "60", "--a", "undefended=0.2")
    assert done.returncode == 0, done.stderr
    assert "\n   24 " in done.stdout
    assert (
        "At the target of 24: the share with p at most its boundary at any declared look (0.00" in done.stdout
    )
    assert "At the target of 24 participants the smallest difference with a power of 80.0 %" in done.stdout


def test_other_commands_load_no_figures() -> None:
    code = "import sys, app.cli; sys.exit(bool({'matplotlib', 'app.figures'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_power_of_a_pack_alone(settings: Settings, pack: Pack) -> None:
    done = app(settings, "power", "--pack", str(pack.directory), "--replicates", "20", "--participants", "6")
    assert done.returncode == 0, done.stderr
    assert "test-pack" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--participants", "1"), "between 2 and 500"),
        (("--participants", "501"), "between 2 and 500"),
        (("--replicates", "0"), "between 1 and 1000000"),
        (("--alpha", "1"), "alpha lies between 0 and 1"),
        (("--power", "nan"), "--power lies between 0 and 1"),
        (("--seed", "-1"), "--seed must not be negative"),
        (("--sd-pair", "-1"), "spread of pair is -1.0"),
        (("--sd-pair-model", "nan"), "spread of pair x model is nan"),
        (("--a", "vgg=0.3"), "no model 'vgg'"),
        (("--a", "undefended=1.3"), "not MODEL=RATE"),
        (("--a", "gradient_regularized=0.3"), "two models"),
        (("--study", "none-such"), "none-such.toml: cannot be read"),
        (("--pack", "none-such"), "none-such: there is no such folder"),
    ],
)
def test_power_refuses_in_one_line(settings: Settings, arguments: tuple[str, ...], complaint: str) -> None:
    study = () if {"--study", "--pack"} & set(arguments) else ("--study", "test")
    assert_one_line(app(settings, "power", *study, *arguments), complaint)


# The page


def test_the_page_is_for_the_researcher(client: TestClient) -> None:
    assert client.get("/results/test/power").status_code == 401


def test_the_page_answers_at_once_with_the_papers_rates(researcher: TestClient) -> None:
    reply = researcher.get("/results/test/power")
    assert reply.status_code == 200
    page = Page(reply.text)
    rows = page.tables["Power"]
    assert rows[0] == ["Participants", "These images", "New images too"]
    assert [row[0] for row in rows[1:]] == ["3 target", "6", "10", "15", "20", "25", "30", "40", "50"]
    assert page.findings[0].startswith("If the rates are 26.0 % and 41.8 %, 25 participants are the fewest")
    assert (
        "are the fewest of these numbers whose simulated power reaches 80.0 %, give or take"
        in page.findings[0]
    )
    assert page.findings[0].endswith("The study’s target of 3 gives 0.0 %.")
    assert rows[1][1] == "0.0 at most 0.4"
    assert "“Mistake reasonable” rate of undefended, in percent" in page.text
    assert "no rate above 26.0 % is told apart" in page.text
    assert "declares looks" not in page.text
    assert page.figures[0][0].startswith("Power over the number of participants. Power for new participants")
    assert "style=" not in reply.text
    assert 'value="26"' in reply.text
    assert researcher.get("/results/test/power").text == reply.text, "the same studies are simulated again"


def test_the_page_takes_other_expectations(researcher: TestClient) -> None:
    query = {"a": "10", "b": "90", "participants": "30, 8 8", "power": "95", "sd_pair": "0"}
    page = Page(researcher.get("/results/test/power", params=query).text)
    assert [row[0] for row in page.tables["Power"][1:]] == ["8", "30"]
    assert (
        "8 participants are the fewest of these numbers whose simulated power reaches 95.0 %"
        in page.findings[0]
    )
    assert "At the target" not in page.text, "it is not among the numbers"
    page = Page(researcher.get("/results/test/power", params=query | {"b": "10.0"}).text)
    assert page.findings == [
        "The two rates are equal, so every study counted in this table is a false alarm."
    ]
    page = Page(researcher.get("/results/test/power", params=query | {"b": "11"}).text)
    assert "none of these numbers of participants gives a power of 95.0 %" in page.findings[0]


def test_the_page_tells_the_studys_looks(researcher: TestClient, settings: Settings) -> None:
    with_looks(settings, 24, [12, 18])
    prepare(settings)
    page = Page(researcher.get("/results/test/power", params={"participants": "10 24"}).text)
    (_, early), (_, middle), (_, last) = rule(24, looks=[12, 18, 24])
    said = f"at any of them ({p_value(early)} at 12, {p_value(middle)} at 18, {p_value(last)} at 24)"
    assert said in page.text
    assert "At the target of 24 participants the smallest difference with a power of 80.0 %" in page.text
    page = Page(researcher.get("/results/test/power", params={"participants": "10"}).text)
    assert "declares looks" not in page.text


def test_the_page_says_what_it_cannot_read(researcher: TestClient) -> None:
    for field, value, complaint in (
        ("a", "", "The rate of the first model is a number from 0 to 100."),
        ("b", "101", "The rate of the second model is a number from 0 to 100."),
        ("b", "nan", "The rate of the second model is a number from 0 to 100."),
        ("participants", "", "Give 1 to 12 numbers"),
        ("participants", " ".join(["9"] * 13), "Give 1 to 12 numbers"),
        ("participants", "20 1", "Numbers of participants are whole, from 2 to 500."),
        ("participants", "20.5", "Numbers of participants are whole"),
        ("participants", "9" * 5000, "Numbers of participants are whole"),
        ("participants", "400 400 400", "come to at most 1000 together"),
        ("power", "100", "The power wanted is a number from 1 to 99."),
        ("sd_pair", "6", "The spread between targets of one source image is a number from 0 to 5."),
        ("sd_image", "<b>", "The spread between source images is a number from 0 to 5."),
    ):
        reply = researcher.get("/results/test/power", params={field: value})
        assert reply.status_code == 422, (field, value)
        page = Page(reply.text)
        assert complaint in page.text
        assert page.findings == []
        assert page.figures == []
        assert "<b>" not in reply.text


def test_there_is_no_page_for_a_study_that_is_not_there(researcher: TestClient) -> None:
    assert researcher.get("/results/none-such/power").status_code == 404
