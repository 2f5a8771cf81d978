"""The researcher's page: masking, versions, simulated data, empty studies, and every sentence it can say."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app import definition as definitions
from app import printed, results, sheet
from app.db import Database
from app.main import create_app
from app.results import Results
from app.serving import prepare
from app.settings import Settings
from ml import pack as pack_format
from ml.pack import Pack, Stimulus
from tests.app.conftest import Player, installation, sign_in
from tests.app.databases import KINDS, Databases
from tests.app.oracle import MODELS, OUTCOMES, by_labels, play, read_csv, strict
from tests.app.reading import Page, assert_no_nonsense, assert_page_says
from tests.app.small import SMALL_STUDY, prepared, settings, small, study

# PostgreSQL for what is put on record and counted; the words are of what was computed.
pytestmark = pytest.mark.quickly("sqlite")

PLAIN = by_labels(
    {"undefended": (1, 0, 0, 1), "distilled": (0, 1, 0, 0), "gradient_regularized": (2, 1, 0, 2)}
)


__all__ = ["prepared", "settings", "small", "study"]  # fixtures

# Masking


@pytest.mark.only(*KINDS)
def test_comparisons_are_masked_until_the_target_and_unmasking_is_on_record(
    researcher: TestClient, small: Pack
) -> None:
    def look() -> tuple[dict[str, Any], Page]:
        found = strict(researcher.get("/results/test.json").text)
        page = Page(researcher.get("/results/test").text)
        assert_page_says(page, found)
        assert_no_nonsense(page)
        return found, page

    def masked(included: int) -> None:
        found, page = look()
        assert (found["masked"], found["unmasked"]) == (True, None)
        assert page.findings == []
        said = f"shows once 3 participants are complete and included; {included} are so far"
        assert said in page.text
        fixed, _, below = page.text.partition("Masked until the target")
        assert "undefended against gradient regularized: mistake reasonable" in fixed
        for telling in ("sign-flip", "undefended", "distilled", "gradient"):
            assert telling not in below, "nothing tells the models apart"
        for url in ("/results/test/images", "/results/test/report.html"):
            reply = researcher.get(url)
            assert reply.status_code == 200
            assert "shows once 3" in reply.text or "masked until 3" in reply.text
            below = reply.text.partition("Masked until the target")[2] or reply.text
            assert "gradient" not in below.split("<h2>Methods")[0]

    masked(0)
    play(researcher, "test", [small], PLAIN)
    play(researcher, "test", [small], lambda s: {"label": "3", "runner_up": "none", "plausible": True})
    play(researcher, "test", [small], PLAIN, finish=False)
    masked(1)  # one label for all and one who has not finished do not count
    everyone = strict(researcher.get("/results/test.json").text)
    n = everyone["packs"]["test-pack"]["models"]["undefended"]["human_fooled"]["n"]
    assert n == 8, "but who has not finished counts in the rates"

    reply = researcher.post("/results/test/unmask?data=real", follow_redirects=False)
    assert (reply.status_code, reply.headers["location"].split("?")[0]) == (303, "/results/test")
    found, page = look()
    assert found["masked"] is False
    at = found["unmasked"]["at"]
    assert found["unmasked"] == {"at": at, "n": 1}
    stamp = f"{at[:10]} at {at[11:16]} UTC"
    assert f"Unmasked early, on {stamp}, with 1 of the target of 3 participants" in page.text
    assert {c["participants"] for c in found["packs"]["test-pack"]["comparisons"]} == {1}
    assert page.findings == [
        "Over 1 participant, mistakes of undefended counted as reasonable in 25.0 % of answers, those of "
        "gradient regularized in 75.0 %: 50.0 percentage points less often (exact two-sided sign-flip test, "
        "p = 1.0000). It was looked at before the time that was fixed, so its p decides nothing. "
        "This speaks about new participants and these images. There is no interval: one participant does not "
        "show how much participants differ. With 1 participant this test cannot give a p below 1.0000. "
        "Unmasked early, at 1 of 3 participants."
    ]
    simulated = strict(researcher.get("/results/test.json?data=simulated").text)
    assert simulated["masked"] is True, "looking at real data unmasks no simulated ones, nor the reverse"

    for _ in range(2):
        play(researcher, "test", [small], PLAIN)
    assert researcher.post("/results/test/unmask?data=real").status_code == 200
    found, page = look()
    assert found["unmasked"] == {"at": at, "n": 1}, "the record stays what it was"
    assert "Unmasked early" in page.text


@pytest.mark.only(*KINDS)
def test_at_the_target_nothing_is_masked_nor_unmasked(researcher: TestClient, small: Pack) -> None:
    tokens = [play(researcher, "test", [small], PLAIN) for _ in range(3)]
    found = strict(researcher.get("/results/test.json").text)
    assert (found["masked"], found["unmasked"]) == (False, None)
    researcher.post("/results/test/unmask")
    found = strict(researcher.get("/results/test.json").text)
    assert found["unmasked"] is None, "there was nothing to unmask"
    page = Page(researcher.get("/results/test").text)
    assert "Unmasked" not in page.text
    assert "The target was" not in page.text
    play(researcher, "test", [small], PLAIN)
    page = Page(researcher.get("/results/test").text)
    assert "The target was 3 participants; these comparisons are over 4. Going on until p" in page.text
    (sentence,) = page.findings
    assert sentence.startswith("Over 3 participants, "), (
        "who comes after the target moves the headline no more"
    )
    assert "Over all 4 who are complete and included by now the difference is −50.0 (p = 0.1250" in sentence
    for token in tokens[:2]:
        researcher.post(f"/api/sessions/{token}/withdraw")
    found = strict(researcher.get("/results/test.json").text)
    assert (found["participants"]["included"], found["masked"]) == (2, False), "what was seen stays seen"
    assert found["unmasked"] is None, "and was not seen early"


def test_the_target_reached_and_left_again_unseen_masks(researcher: TestClient, small: Pack) -> None:
    tokens = [play(researcher, "test", [small], PLAIN) for _ in range(3)]
    researcher.post(f"/api/sessions/{tokens[0]}/withdraw")
    assert strict(researcher.get("/results/test.json").text)["masked"] is True


# Edges


@pytest.mark.only(*KINDS)
def test_nobody_yet(researcher: TestClient) -> None:
    found = strict(researcher.get("/results/test.json").text)
    assert found["participants"] == dict.fromkeys(
        ("started", "finished", "excluded", "withdrawn", "included"), 0
    )
    assert found["responses"] == 0
    empty = {"count": 0, "n": 0, "rate": None, "low": None, "high": None}
    assert all(found["packs"]["test-pack"]["models"][m][o] == empty for m in MODELS for o in OUTCOMES)
    researcher.post("/results/test/unmask")
    found = strict(researcher.get("/results/test.json").text)
    assert {c["p"] for c in found["packs"]["test-pack"]["comparisons"]} == {None}
    page = Page(researcher.get("/results/test").text)
    assert_page_says(page, found)
    assert_no_nonsense(page)
    assert page.findings == [
        "No complete, included participant has answered about both models of the primary comparison yet."
    ]
    assert all("no answers yet" in label for label, _ in page.figures)


def test_one_participant_alone(researcher: TestClient, start: Callable[..., Player]) -> None:
    start().answer()
    researcher.post("/results/test/unmask")
    found = strict(researcher.get("/results/test.json").text)
    page = Page(researcher.get("/results/test").text)
    assert_page_says(page, found)
    assert_no_nonsense(page)
    note = "The interval leaves out differences between participants: there is only one."
    assert page.text.count(note) == 1, "a limit that all intervals share is said once"


@pytest.mark.parametrize("target", [True, False])
def test_all_answers_the_same(researcher: TestClient, small: Pack, target: bool) -> None:
    def choose(stimulus: Stimulus | None) -> dict[str, Any]:
        if stimulus is None:
            return {"label": "none"}
        label = stimulus.target_label if target else stimulus.source_label
        return {"label": label, "runner_up": "none", "plausible": target, "rt_ms": 500}

    for _ in range(3):
        play(researcher, "test", [small], choose)
    found = strict(researcher.get("/results/test.json").text)
    comparisons = found["packs"]["test-pack"]["comparisons"]
    assert len(comparisons) == 9
    for c in comparisons:
        assert (c["difference"], c["low"], c["p"], c["p_naive"], c["p_new_images"]) == (0, None, 1, 1, None)
        assert c["reason"]
        assert c["reason_new_images"]
    page = Page(researcher.get("/results/test").text)
    assert_page_says(page, found)
    assert_no_nonsense(page)
    rate = "100.0" if target else "0.0"
    assert page.findings == [
        f"Over 3 participants, mistakes of undefended counted as reasonable in {rate} % of answers, those of "
        f"gradient regularized in {rate} %: exactly as often (exact two-sided sign-flip test, p = 1.0000). That "
        "is no evidence of a difference: p is above the 0.05 that was fixed beforehand. This speaks about new "
        "participants and these images. There is no interval: all participants have the same difference, so "
        "its spread is unknown. With 3 participants this test cannot give a p below 0.2500."
    ]


# What the images are


def test_only_a_part_of_a_data_set_is_said_with_the_results(
    small: Pack, tmp_path: Path, databases: Databases
) -> None:
    note = "A part of SVHN: 24,027 training images and 2,000 test images, not the full set."
    dataset = {"name": "svhn", "source": "Somebody & Co", "licence": "non-commercial use only"}
    pngs = [path.read_bytes() for path in (small.directory / "images").iterdir()]
    for folder, said in ((tmp_path / "part", note), (tmp_path / "all", "")):
        manifest = small.manifest | {
            "dataset": small.manifest["dataset"] | dataset | {"note": said},
            "attack": {"name": "tgsm", "parameters": {}},
        }
        folder.mkdir()
        pack = pack_format.write(folder / "stimuli" / "test-pack", manifest, pngs)
        own = installation(folder, pack, databases.new(folder), SMALL_STUDY)
        prepare(own)
        with TestClient(create_app(own)) as client:
            sign_in(client)
            masked = Page(client.get("/results/test").text)
            client.post("/results/test/unmask")
            dashboard = Page(client.get("/results/test").text)
            report = Page(client.get("/results/test/report.html").text)
        for page in (masked, dashboard, report):
            line = "Images made from svhn, licence: non-commercial use only."
            assert f"{line} {said}".strip() in page.text
        for page in (masked, dashboard):
            assert_no_nonsense(page)
        for page in (dashboard, report):
            caption = page.captions["Published table, test-pack"]
            assert (
                "and here only a part of the data set was at hand, to train the networks too;" in caption
            ) is bool(said)
            assert said in caption
        methods = report.text.partition("Methods")[2].partition("What made these numbers")[0]
        part = " (only a part)" if said else ""
        assert (
            f"The images: test-pack, made from svhn, Somebody & Co{part}; licence: non-commercial use only. {said}"
        ).strip() in methods


@pytest.mark.parametrize(
    "odd", [{"dataset": "unknown"}, {"dataset": {}, "attack": 7}, {"attack": {"name": None}}]
)
def test_a_pack_that_does_not_say_what_it_is_made_of_has_results(
    odd: dict[str, Any], small: Pack, tmp_path: Path, database_url: str
) -> None:
    """Its import checks what the study rests on, not where images are from."""
    pngs = [path.read_bytes() for path in (small.directory / "images").iterdir()]
    pack = pack_format.write(tmp_path / "stimuli" / "test-pack", small.manifest | odd, pngs)
    own = installation(tmp_path, pack, database_url, SMALL_STUDY)
    prepare(own)
    with TestClient(create_app(own)) as client:
        sign_in(client)
        client.post("/results/test/unmask")
        assert_no_nonsense(Page(client.get("/results/test").text))


# Wording, for results that would take thousands of participants to play


@pytest.fixture(scope="module")
def computed(
    tmp_path_factory: pytest.TempPathFactory, small: Pack, study: str, prepared: str, databases: Databases
) -> Results:
    """The unmasked results of nobody, to be changed in copies."""
    folder = tmp_path_factory.mktemp("computed")
    own = installation(folder, small, databases.copy(prepared, folder), study)
    with TestClient(create_app(own)) as client:
        assert sign_in(client).post("/results/test/unmask").status_code == 200
    db = Database(own.database_url)
    with db.read() as session:
        version = definitions.active(session, "test")
        assert version is not None
        found = results.compute(session, version, "real")
    db.close()
    return found


def finding(computed: Results, **change: Any) -> str:
    """The page's main sentences, had the primary comparison come out so."""
    (primary,) = (c for c in computed.packs["test-pack"].comparisons if c.primary)
    return sheet.finding(computed, replace(primary, **change))


WIDE: dict[str, Any] = {
    "participants": 500,
    "rate_a": 0.3,
    "rate_b": 0.2,
    "low": -0.02,
    "high": 0.03,
    "p": 0.6,
}


def test_a_difference_too_small_to_print_is_not_called_zero(computed: Results) -> None:
    said = finding(computed, **WIDE | {"difference": 0.0004})
    assert ": less than 0.1 percentage points more often (" in said
    said = finding(computed, **WIDE | {"difference": -0.0006})
    assert ": 0.1 percentage points less often (" in said
    assert "cannot give" not in said


def test_a_small_p_is_an_inequality(computed: Results) -> None:
    far = WIDE | {"difference": 0.2, "low": 0.1, "high": 0.3}
    assert "sign-flip test, p < 0.0001)" in finding(computed, **far | {"p": 3e-9})
    assert "sign-flip test, p = 0.0001)" in finding(computed, **far | {"p": 1e-4})


def test_interval_and_test_that_disagree_are_said_to(computed: Results) -> None:
    warning = "The interval and the test disagree about a difference of zero here"
    clear = {"difference": 0.2, "low": 0.1, "high": 0.3}
    open_ = {"difference": 0.1, "low": -0.1, "high": 0.3}
    for sides, p, disagree in ((clear, 0.06, True), (clear, 0.05, False), (open_, 0.04, True)):
        assert (warning in finding(computed, **WIDE | sides | {"p": p})) == disagree
    assert warning not in finding(computed, **WIDE | open_)


def test_a_coarsened_test_is_not_called_exact(computed: Results) -> None:
    assert "exact" not in finding(computed, **WIDE | {"difference": 0.1, "p_exact": False})


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        ("human_fooled", "images made for undefended fooled participants in 30.0 % of answers, "
         "those made for gradient regularized in 20.0 %: 10.0 percentage points more often"),
        ("mistake_reasonable_direct", "mistakes of undefended were judged reasonable in 30.0 % of answers, "
         "those of gradient regularized in 20.0 %: 10.0 percentage points more often"),
    ],
)  # fmt: skip
def test_the_sentence_fits_the_outcome(computed: Results, outcome: str, words: str) -> None:
    assert words in finding(computed, **WIDE | {"difference": 0.1, "outcome": outcome})


def test_numbers_are_rounded_as_people_round() -> None:
    for n in range(1, 401):
        for count in range(n + 1):
            tenths = (2000 * count + n) // (2 * n)  # in whole numbers: the nearest, a half goes up
            text = f"{tenths // 10}.{tenths % 10}"
            assert printed.percent(count / n) == text, (count, n)
            assert printed.points(-count / n) == (f"−{text}" if tenths else "0.0")
    assert printed.percent(23 / 80) == "28.8"
    assert printed.points(1 / 16) == "+6.3"
    assert [printed.p_value(p) for p in (1.0, 2 / 64, 1e-4, 9.99e-5, 2.2e-308)] == [
        "1.0000",
        "0.0313",
        "0.0001",
        "< 0.0001",
        "< 0.0001",
    ]


@pytest.mark.only(*KINDS)
def test_real_participants_are_shown_once_there_are_any_and_never_mixed(
    researcher: TestClient, start: Callable[..., Player]
) -> None:
    assert strict(researcher.get("/results/test.json").text)["data"] == "real"
    start(simulated="yes").answer(most=5)
    found = strict(researcher.get("/results/test.json").text)
    assert (found["data"], found["participants"]["started"], found["responses"]) == ("simulated", 1, 3)
    page = Page(researcher.get("/results/test").text)
    assert "not from people" in page.text
    start().answer(most=4)
    found = strict(researcher.get("/results/test.json").text)
    assert (found["data"], found["participants"]["started"], found["responses"]) == ("real", 1, 2)
    assert "Show the simulated participants" in Page(researcher.get("/results/test").text).text
    page = Page(researcher.get("/results/test?data=simulated").text)
    assert "Show the real ones" in page.text
    start(simulated="yes")
    assert strict(researcher.get("/results/test.json").text)["data"] == "real", "nobody can play these away"
    assert page.tiles[4] == "3 images labeled, practice apart"
    researcher.post("/results/test/unmask?data=simulated")
    masked = [
        strict(researcher.get(f"/results/test.json?data={data}").text)["masked"]
        for data in ("simulated", "real")
    ]
    assert masked == [False, True], "a rehearsal unmasks nothing real"


@pytest.mark.only(*KINDS)
def test_a_new_version_has_its_own_data_and_the_old_one_stays_in_reach(
    settings: Settings, researcher: TestClient, start: Callable[..., Player]
) -> None:
    start().answer()
    old = strict(researcher.get("/results/test.json").text)
    file = Path(settings.studies) / "test.toml"
    file.write_text(file.read_text().replace("target_participants = 3", "target_participants = 2"))
    prepare(settings)
    new = strict(researcher.get("/results/test.json").text)
    assert new["version"] != old["version"]
    assert (new["responses"], new["target_participants"], old["target_participants"]) == (0, 2, 3)
    start().answer(most=7)
    assert strict(researcher.get("/results/test.json").text)["responses"] == 5
    again = strict(researcher.get(f"/results/test.json?version={old['version']}").text)
    assert again | {"computed_at": old["computed_at"]} == old
    rows = read_csv(researcher.get(f"/results/test/responses.csv?version={old['version']}").text)
    assert set(rows["version"]) == {old["version"]}
    assert len(rows) == 14
    page = Page(researcher.get(f"/results/test?version={old['version']}").text)
    assert_page_says(page, old)
    assert f"an earlier version: new participants take part in {new['version']}" in page.text
    assert "an earlier version" not in Page(researcher.get("/results/test").text).text
    reply = researcher.post(f"/results/test/unmask?version={old['version']}")
    assert strict(researcher.get(f"/results/test.json?version={old['version']}").text)["masked"] is False
    assert reply.url.params["version"] == old["version"]
    assert strict(researcher.get("/results/test.json").text)["masked"] is True, "each version has its own"
