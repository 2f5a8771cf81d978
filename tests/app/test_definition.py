"""Study files: what is refused, and how a file becomes a version."""

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from fractions import Fraction
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import delete, func, select

from app import definition as definitions
from app.db import Database
from app.definition import Definition, DefinitionError
from app.differences import sign_flip
from app.main import create_app
from app.models import CleanImage, Image, Pack, Stimulus, Study, StudyPack
from app.packs import Imported, import_pack
from app.sequential import boundaries
from app.serving import prepare
from app.settings import ROOT, Settings
from ml import pack as pack_format
from tests.app.conftest import PREPARED_AT, SECRET, STUDY, begin
from tests.app.databases import KINDS
from tests.packs import make_pack

# What a file says is refused by itself; PostgreSQL for packs that are stored again.
pytestmark = pytest.mark.quickly("sqlite")

NOON = PREPARED_AT + timedelta(hours=12)


@pytest.fixture
def database(prepared: str, database_url: str) -> Iterator[Database]:
    """A migrated database with the test pack, and no study."""
    database = Database(database_url)
    with database.write() as session:
        session.execute(delete(StudyPack))
        session.execute(delete(Study))
        session.commit()
    yield database
    database.close()


def look_at(study: str, at: str, target: int = 20) -> str:
    """That study with looks."""
    target_participants = f"target_participants = {target}"
    return study.replace("target_participants = 3", target_participants) + f"[looks]\nat = {at}"


def freeze(database: Database, path: Path, now: datetime = NOON) -> str:
    with database.write() as session:
        study = definitions.freeze(session, path, now)
        session.commit()
        return study.version


def test_the_bundled_studies_are_valid() -> None:
    paths = sorted((ROOT / "studies").glob("*.toml"))
    assert paths
    for path in paths:
        assert definitions.read(path)


def test_the_bundled_studies_run_on_the_bundled_packs(database_url: str) -> None:
    settings = Settings(database_url, SECRET)
    slugs = prepare(settings)
    assert "mnist" in slugs
    with TestClient(create_app(settings)) as client:
        for slug in slugs:
            assert client.get(f"/study/{slug}").status_code == 200
            player = begin(client, slug)
            trials = player.session()["trials"]
            assert sum(not t["practice"] for t in trials) == 30
            assert all(client.get(t["image"]).content[:4] == b"\x89PNG" for t in trials)
            player.answer()
            assert "Thank you" in client.get(f"/s/{player.token}").text


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda t: t + "\n[", "not a TOML file"),
        (lambda t: t.replace("seed = 7", ""), "seed: Field required"),
        (lambda t: t.replace("seed = 7", 'seed = "x"'), "seed"),
        (lambda t: t.replace("seed = 7", "seed = 7\nsped = 8"), "sped"),
        (lambda t: t.replace("practice = 2", "practice = -1"), "practice"),
        (lambda t: t.replace("practice = 2", "practice = 2\ntrials = 20"), "trials must be 30"),
        (lambda t: t.replace('packs = ["test-pack"]', "packs = []"), "packs"),
        (
            lambda t: t.replace('packs = ["test-pack"]', 'packs = ["other", "test-pack"]'),
            "'other' is not imported",
        ),
        (lambda t: t.replace('pack = "test-pack"', 'pack = "other"'), "primary.pack"),
        (lambda t: t.replace('pack = "test-pack"\n', 'pack = "test-pack"\na = "resnet"\n'), "'resnet'"),
        (lambda t: t.replace("seed = 7", 'seed = 7\nquestions = ["runner_up"]'), "must contain 'label'"),
        (lambda t: t.replace("seed = 7", 'seed = 7\nquestions = ["label", "size"]'), "questions"),
        (
            lambda t: t.replace("practice = 2", "practice = 2\ncontrols = 3"),
            "5 practice and control images are",
        ),
        (lambda t: t.replace("practice = 2", "practice = 2\npause_after = 1"), "pause_after"),
        (lambda t: t.replace("min_answer_ms = 0", "min_answer_ms = -1"), "min_answer_ms"),
        (
            lambda t: t.replace("[exclusions]", "[exclusions]\nmin_controls_right = 1"),
            "min_controls_right is more than the 0 controls",
        ),
        (
            lambda t: t.replace(
                "seed = 7", 'seed = 7\nquestions = ["label", "plausibility"]\nrotate_questions = true'
            ),
            "rotate_questions needs the question 'runner_up'",
        ),
        (lambda t: t + "[looks]\nat = []", "looks.at"),
        (lambda t: t + "[looks]\nat = [1, 2]", "rise strictly, from 2 participants"),
        (lambda t: look_at(t, "[12, 12]"), "rise strictly"),
        (lambda t: look_at(t, "[14, 12]"), "rise strictly"),
        (lambda t: look_at(t, "[12, 20]"), "looks.at 20 is not below target_participants 20"),
        (lambda t: look_at(t, "[12.5]"), "looks.at"),
        (lambda t: look_at(t, str([*range(30, 41)]), 100), "looks.at"),
        (
            lambda t: look_at(t, "[7, 14]"),
            "looks.at 7 can never cross its boundary: 7 participants give a p of 0.016 at the least, "
            "and p must be 0.00068 or less there; look later",
        ),
        (lambda t: look_at(t, "[2]", 300_000), "information fractions must rise"),
        (lambda t: t + '[completion]\nredirect_url = "https://{id}.example/"', "redirect_url"),
        (lambda t: t + '[completion]\nredirect_url = "https://a.example/?x={token}"', "names {token}"),
        (lambda t: t + '[recruitment]\nreturning = "maybe"', "recruitment.returning"),
        (lambda t: t + '[completion]\nredirect_url = "javascript:alert(1)"', "redirect_url"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(
    tmp_path: Path, database: Database, change: Callable[[str], str], complaint: str
) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(change(STUDY))
    with pytest.raises(DefinitionError) as caught:
        freeze(database, path)
    assert complaint in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value).replace("\n[", "")
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(Study)) == 0


def test_looks_are_declared_with_their_boundaries(tmp_path: Path) -> None:
    path = tmp_path / "test.toml"
    path.write_text(look_at(STUDY, "[10, 15]"))
    definition = Definition.model_validate(definitions.read(path))
    assert definition.look_sizes == [10, 15, 20]
    assert definition.look_boundaries == boundaries([0.5, 0.75, 1])
    guide = (ROOT / "docs" / "study-file.md").read_text(encoding="utf-8")
    first, second, last = definition.look_boundaries
    assert f"(here {first:.4f}, {second:.4f} and {last:.4f})" in guide, "the guide's example, half as large"
    path.write_text(STUDY)
    definition = Definition.model_validate(definitions.read(path))
    assert (definition.look_sizes, definition.look_boundaries) == ([3], [0.05])


def test_the_earliest_look_is_the_first_whose_boundary_can_be_crossed(tmp_path: Path) -> None:
    """At the smallest p that the exact test gives to so many participants, all of them on one side."""
    path = tmp_path / "test.toml"
    for size in range(2, 20):
        path.write_text(look_at(STUDY, f"[{size}]"))
        smallest = sign_flip([Fraction(1, 10)] * size)
        assert smallest is not None
        if smallest.p <= boundaries([size / 20, 1])[0]:
            assert definitions.read(path)["looks"] == {"at": [size]}
        else:
            with pytest.raises(DefinitionError, match=f"{size} can never cross"):
                definitions.read(path)


def test_the_file_name_is_the_url(tmp_path: Path, database: Database) -> None:
    path = tmp_path / "My Study.toml"
    path.write_text(STUDY)
    with pytest.raises(DefinitionError, match="a-z, 0-9"):
        freeze(database, path)


@pytest.mark.only(*KINDS)
def test_a_changed_file_is_a_new_version_and_an_old_one_comes_back(
    tmp_path: Path, database: Database
) -> None:
    path = tmp_path / "test.toml"
    versions = []
    for hours, text in enumerate(
        (STUDY, "# a comment\n" + STUDY, STUDY.replace("seed = 7", "seed = 8"), STUDY)
    ):
        path.write_text(text)
        versions.append(freeze(database, path, NOON + timedelta(hours=hours)))
        with database.read() as session:
            active = definitions.active(session, "test")
            assert active is not None
            assert active.version == versions[-1]
    assert versions[0] == versions[1] == versions[3], "comments do not make a version"
    assert versions[2] != versions[0]


def test_another_pack_of_the_same_name_makes_a_new_version(tmp_path: Path, database: Database) -> None:
    path = tmp_path / "test.toml"
    path.write_text(STUDY)
    before = freeze(database, path)
    other = make_pack(tmp_path / "packs" / "test-pack", seed=1)
    with database.write() as session:
        import_pack(session, other, NOON + timedelta(hours=1))
        session.commit()
    assert freeze(database, path, NOON + timedelta(hours=2)) != before


@pytest.mark.only(*KINDS)
def test_a_pack_that_comes_back_is_in_use_again(
    tmp_path: Path, database: Database, pack: pack_format.Pack
) -> None:
    path = tmp_path / "test.toml"
    path.write_text(STUDY)
    first = freeze(database, path)
    other = make_pack(tmp_path / "packs" / "test-pack", seed=1)
    for hours, content in enumerate((other, pack), start=1):
        with database.write() as session:
            import_pack(session, content, NOON + timedelta(hours=hours))
            session.commit()
        assert (freeze(database, path, NOON + timedelta(hours=hours)) == first) == (content is pack)


def test_a_study_without_its_file_takes_no_new_participants(settings: Settings) -> None:
    prepare(settings)
    with TestClient(create_app(settings)) as client:
        player = begin(client)
        (settings.studies / "test.toml").rename(settings.studies / "other.toml")
        assert prepare(settings) == ["other"]
        assert "/study/other" in client.get("/").text
        assert "/study/test" not in client.get("/").text
        assert client.get("/study/test").status_code == 404
        body = {"study": "test", "consent": True, "external": {}}
        assert client.post("/api/sessions", json=body).status_code == 404
        player.answer()
        assert player.session()["state"] == "finished", "who has begun may finish"


def test_a_pack_with_too_few_sources_cannot_carry_a_study(tmp_path: Path, database: Database) -> None:
    small = make_pack(tmp_path / "packs" / "small", name="small", sources=2)
    path = tmp_path / "test.toml"
    path.write_text(STUDY.replace("test-pack", "small"))
    with database.write() as session:
        import_pack(session, small, NOON)
        with pytest.raises(DefinitionError, match="2 source images of '0'"):
            definitions.freeze(session, path, NOON)


def test_a_pack_without_clean_images_needs_a_study_without_practice(
    tmp_path: Path, database: Database
) -> None:
    bare = make_pack(tmp_path / "packs" / "bare", name="bare", clean=0)
    path = tmp_path / "test.toml"
    with database.write() as session:
        import_pack(session, bare, NOON)
        path.write_text(STUDY.replace("test-pack", "bare"))
        with pytest.raises(
            DefinitionError, match="2 practice and control images are needed; the packs have 0 clean ones"
        ):
            definitions.freeze(session, path, NOON)
        path.write_text(STUDY.replace("test-pack", "bare").replace("practice = 2", "practice = 0"))
        definitions.freeze(session, path, NOON)


def test_two_labels_leave_no_placebo(tmp_path: Path, database: Database) -> None:
    pair = make_pack(tmp_path / "packs" / "pair", name="pair", labels=("0", "1"), targets=1)
    path = tmp_path / "test.toml"
    path.write_text(STUDY.replace("test-pack", "pair").replace("seed = 7", "seed = 7\ntrials = 6"))
    with database.write() as session:
        import_pack(session, pair, NOON)
        with pytest.raises(DefinitionError, match="placebo"):
            definitions.freeze(session, path, NOON)


@pytest.mark.only(*KINDS)
def test_importing_again_changes_nothing(database: Database, pack: pack_format.Pack) -> None:
    def counts() -> list[int | None]:
        with database.read() as session:
            return [
                session.scalar(select(func.count()).select_from(table))
                for table in (Pack, Image, Stimulus, CleanImage)
            ]

    before = counts()
    with database.write() as session:
        _, imported = import_pack(session, pack, NOON + timedelta(days=1))
        session.commit()
    assert imported is Imported.KNOWN
    assert counts() == before
    assert before[0] == 1
    assert before[2] == len(pack.stimuli)
    with database.read() as session:
        for stimulus in pack.stimuli[:20]:
            image = session.get_one(Image, stimulus.sha256)
            assert image.png == pack.image(stimulus.sha256)
            assert (image.width, image.height) == (28, 28)
