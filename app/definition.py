"""The study file: what is asked, of whom, about which packs; validated, then frozen under a hash."""

import hashlib
import json
import re
import tomllib
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app.models import NONE_PLAUSIBLE, CleanImage, Pack, Stimulus, Study, StudyPack
from app.packs import read_folder
from app.recruiters import FILLERS, PLACEHOLDER
from app.sequential import boundaries
from app.settings import Settings
from ml import pack as pack_format

Question = Literal["label", "runner_up", "plausibility"]
Language = Literal["en", "zh"]
Outcome = Literal["human_fooled", "mistake_reasonable", "mistake_reasonable_direct"]

NEEDS: dict[str, Question] = {"target_second": "runner_up", "mistake_reasonable_direct": "plausibility"}
"""The outcomes that exist only where a question beyond the first label is asked."""

ALPHA = 0.05  # of the primary comparison, over all its looks

# Part of every version: raise it when the wording of a question in templates/ changes, as the answers before and
# after are then answers to different questions.
QUESTIONNAIRE = 2


class DefinitionError(ValueError):
    """A study file that cannot be used; the message is one line naming the file and what is wrong."""


class MissingPackError(DefinitionError):
    """A study file whose pack is not there yet; another study can go on without it."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Primary(_Strict):
    """The one comparison that the study was made for; it stands outside the correction for many."""

    pack: str
    a: str = "undefended"
    b: str = "gradient_regularized"
    outcome: Outcome = "mistake_reasonable"


class Exclusions(_Strict):
    """Rules, fixed beforehand, by which a participant's answers leave the results; the rows stay."""

    min_median_label_rt_ms: float | None = Field(default=None, gt=0)  # answers faster than reading
    max_same_label_share: float | None = Field(default=None, gt=0, le=1)  # one key for everything
    min_controls_right: int | None = Field(default=None, ge=1)  # control images read as what they are


class Looks(_Strict):
    """Interim looks at the primary comparison, each when so many participants are complete and included."""

    at: list[int] = Field(
        min_length=1, max_length=10
    )  # the target itself is the last look, and not named here

    @field_validator("at")
    @classmethod
    def _rising(cls, at: list[int]) -> list[int]:
        if at[0] < 2 or any(b <= a for a, b in pairwise(at)):
            raise ValueError("looks must rise strictly, from 2 participants or more")
        return at


class Recruitment(_Strict):
    """What happens when a recruiter's id comes a second time: a recruiter sends one person, not two."""

    # "resume": the same session again, on any device; "refuse": a page that says so; "new": another session.
    returning: Literal["resume", "refuse", "new"] = "resume"


class Completion(_Strict):
    """What the participant takes back to the recruiter; without `code` each gets a code of their own."""

    code: str | None = Field(default=None, min_length=3, max_length=100)
    redirect_url: str | None = Field(
        default=None, pattern=r"^https://[^{}/]+(/|$)"
    )  # may name {survey_code} and so on

    @field_validator("redirect_url")
    @classmethod
    def _known_names(cls, url: str | None) -> str | None:
        for name in PLACEHOLDER.findall(url or ""):
            if name not in FILLERS:
                raise ValueError(f"redirect_url names {{{name}}}, which is none of {', '.join(FILLERS)}")
        return url


class Texts(_Strict):
    """What the participant reads; paragraphs as lists."""

    summary: str
    minutes: int = Field(gt=0, le=240)
    information: list[str]
    consent: list[str]
    debrief: list[str]
    contact: str


class Translation(Texts):
    """The title and texts in another language."""

    title: str = Field(min_length=1, max_length=200)


class Definition(_Strict):
    """A study, as its TOML file says it."""

    title: str = Field(min_length=1, max_length=200)
    packs: list[str] = Field(min_length=1)
    seed: int = Field(ge=0)
    trials: int = Field(default=30, ge=1)
    practice: int = Field(default=2, ge=0, le=20)  # clean images, before the others
    controls: int = Field(default=0, ge=0, le=20)  # clean images among the others; never in the rates
    pause_after: int | None = Field(default=None, ge=2)  # images; then a pause, in both parts
    questions: list[Question] = ["label", "runner_up", "plausibility"]
    rotate_questions: bool = False  # half of the participants are asked for the runner-up first
    min_answer_ms: int = Field(
        default=200, ge=0, le=5000
    )  # after an image appears, what comes sooner is no answer
    comments: bool = True
    target_participants: int = Field(ge=2)
    primary: Primary
    looks: Looks | None = None  # without it there is one look, at the target
    exclusions: Exclusions = Exclusions()
    completion: Completion = Completion()
    recruitment: Recruitment = Recruitment()
    language: Language = "en"  # of the title and the texts
    texts: Texts
    translations: dict[Language, Translation] = {}

    @model_validator(mode="after")
    def _coherent(self) -> "Definition":
        if "label" not in self.questions:
            raise ValueError("questions must contain 'label'")
        if len(set(self.questions)) != len(self.questions):
            raise ValueError("questions must not repeat")
        if len(set(self.packs)) != len(self.packs):
            raise ValueError("packs must not repeat")
        if self.primary.pack not in self.packs:
            raise ValueError(f"primary.pack {self.primary.pack!r} is not one of the study's packs")
        if self.primary.a == self.primary.b:
            raise ValueError("primary.a and primary.b must be two models")
        if not self.asks(self.primary.outcome):
            raise ValueError(f"the primary outcome needs the question {NEEDS[self.primary.outcome]!r}")
        if self.rotate_questions and "runner_up" not in self.questions:
            raise ValueError("rotate_questions needs the question 'runner_up'")
        if (self.exclusions.min_controls_right or 0) > self.controls:
            raise ValueError(f"exclusions.min_controls_right is more than the {self.controls} controls")
        if self.looks is not None:
            self._check_looks(self.looks.at)
        if self.language in self.translations:
            raise ValueError(f"translations.{self.language} repeats the language of [texts]")
        return self

    def _check_looks(self, at: list[int]) -> None:
        if at[-1] >= self.target_participants:
            raise ValueError(
                f"looks.at {at[-1]} is not below target_participants {self.target_participants}, the last look"
            )
        for size, boundary in zip(at, self.look_boundaries, strict=False):
            # The smallest p that the exact sign-flip test can give: all differences have one sign.
            smallest = 2.0 ** (1 - size)
            if smallest > boundary:
                raise ValueError(
                    f"looks.at {size} can never cross its boundary: {size} participants give a p of {smallest:.2g} "
                    f"at the least, and p must be {boundary:.2g} or less there; look later"
                )

    @property
    def look_sizes(self) -> list[int]:
        """Complete, included participants at each look at the primary comparison; the last is the target."""
        return [*(self.looks.at if self.looks else ()), self.target_participants]

    @property
    def look_boundaries(self) -> list[float]:
        """The nominal two-sided p of each of `look_sizes`, where p <= boundary crosses; [ALPHA] without looks."""
        return boundaries([size / self.target_participants for size in self.look_sizes], ALPHA)

    @property
    def languages(self) -> list[str]:
        """The languages that the study's pages come in, its own first."""
        return [self.language, *self.translations]

    @property
    def images(self) -> int:
        """How many images a participant labels, practice apart."""
        return self.trials + self.controls

    def translated(self, language: str) -> "Definition":
        """The same study with the title and the texts in one of `languages`."""
        found = self.translations.get(cast(Language, language))
        if found is None:
            return self
        texts = Texts(**found.model_dump(exclude={"title"}))
        return self.model_copy(update={"title": found.title, "texts": texts})

    def asks(self, outcome: str) -> bool:
        """Whether the study's questions give this outcome."""
        return outcome not in NEEDS or NEEDS[outcome] in self.questions


def read(path: Path) -> dict[str, Any]:
    """A study file's content, validated. Raises DefinitionError."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,59}", path.stem):
        raise DefinitionError(f"{path}: the file's name becomes the URL: use a-z, 0-9 and '-' only")
    try:
        content: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        Definition.model_validate(content)
    except OSError as error:
        raise DefinitionError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DefinitionError(f"{path}: not a TOML file: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DefinitionError(f"{path}: {where + ': ' if where else ''}{first['msg']}") from None
    return content


def of(study: Study) -> Definition:
    """The definition that a study version was frozen with."""
    found = _definitions.get(study.sha256)
    if found is None:
        found = _definitions[study.sha256] = Definition.model_validate(study.definition["file"])
    return found


_definitions: dict[str, Definition] = {}  # by the hash of all that is in them; every request needs one


def found_in(config: Settings, study: str) -> tuple[Definition, list[pack_format.Pack]]:
    """The study that the file of this name defines, and its packs, where the server finds both.

    Raises DefinitionError, PackError, and ValueError where a pack is not there.
    """
    definition = Definition.model_validate(read(config.studies / f"{study}.toml"))
    found, refused = read_folder(config.stimuli)
    packs = [pack for pack in found if pack.name in definition.packs]
    if missing := set(definition.packs) - {pack.name for pack in packs}:
        why = f" ({refused[0]})" if refused else ""
        raise ValueError(f"there is no pack {min(missing)!r} in {config.stimuli}{why}")
    return definition, packs


def freeze(session: Session, path: Path, now: datetime) -> Study:
    """Make the file at `path` the version that takes participants; the caller commits.

    A file and packs seen before are the version they were; anything else is a new version with its own data.
    Raises MissingPackError where a pack is not imported, DefinitionError where the packs cannot carry the study.
    """
    content = read(path)
    definition = Definition.model_validate(content)
    packs = [_latest_pack(session, name, path) for name in definition.packs]
    _check_packs(session, definition, packs, path)
    frozen = {
        "file": content,
        "packs": {pack.name: pack.sha256 for pack in packs},
        "questionnaire": QUESTIONNAIRE,
    }
    sha256 = hashlib.sha256(
        json.dumps(frozen, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    ).hexdigest()
    study = session.scalar(select(Study).where(Study.slug == path.stem, Study.sha256 == sha256))
    if study is None:
        study = Study(slug=path.stem, sha256=sha256, definition=frozen, open=True, activated_at=now)
        study.packs = [StudyPack(pack=pack, position=i) for i, pack in enumerate(packs)]
        session.add(study)
    elif active(session, path.stem) is not study:
        study.activated_at = now
    study.open = True
    session.flush()
    return study


def close_all_but(session: Session, slugs: list[str]) -> None:
    """Studies whose files are gone take no new participants; sessions that have begun go on. The caller commits."""
    session.execute(update(Study).where(Study.slug.not_in(slugs)).values(open=False))


def active(session: Session, slug: str) -> Study | None:
    """The version of a study that takes participants."""
    return session.scalar(
        select(Study).where(Study.slug == slug).order_by(Study.activated_at.desc(), Study.id.desc()).limit(1)
    )


def _latest_pack(session: Session, name: str, path: Path) -> Pack:
    pack = session.scalar(
        select(Pack).where(Pack.name == name).order_by(Pack.imported_at.desc(), Pack.id.desc())
    )
    if pack is None:
        raise MissingPackError(
            f"{path}: pack {name!r} is not imported: python -m app import-pack stimuli/{name}"
        )
    return pack


def _check_packs(session: Session, definition: Definition, packs: list[Pack], path: Path) -> None:
    first = packs[0]
    for pack in packs:
        if pack.labels != first.labels or sorted(pack.models) != sorted(first.models):
            raise DefinitionError(
                f"{path}: packs {first.name!r} and {pack.name!r} differ in labels or models"
            )
        if NONE_PLAUSIBLE in pack.labels:
            raise DefinitionError(f"{path}: pack {pack.name!r} has a label named {NONE_PLAUSIBLE!r}")
        if len(pack.labels) < 3:
            raise DefinitionError(f"{path}: pack {pack.name!r} has 2 labels; the placebo needs a third")
        for model in (definition.primary.a, definition.primary.b):
            if model not in pack.models:
                raise DefinitionError(f"{path}: primary names the model {model!r}, which {pack.name!r} lacks")
        sources: dict[tuple[str, str], set[int]] = {}
        rows = session.execute(
            select(Stimulus.source_label, Stimulus.model, Stimulus.source_index)
            .where(Stimulus.pack_id == pack.id)
            .distinct()
        )
        for label, model, index in rows:
            sources.setdefault((label, model), set()).add(index)
        for label in pack.labels:
            for model in pack.models:
                found = len(sources.get((label, model), set()))
                if found < len(pack.models):
                    raise DefinitionError(
                        f"{path}: pack {pack.name!r} has {found} source images of {label!r} for {model!r}; "
                        f"{len(pack.models)} are needed so that nobody meets one twice"
                    )
    cells = len(first.labels) * len(first.models)
    if definition.trials != cells:
        raise DefinitionError(
            f"{path}: trials must be {cells}, one for each of {len(first.labels)} labels "
            f"and {len(first.models)} models"
        )
    needed = definition.practice + definition.controls
    clean = session.scalar(
        select(func.count(CleanImage.id.distinct())).where(
            CleanImage.pack_id.in_([p.id for p in packs]), CleanImage.role == "clean"
        )
    )
    if needed > (clean or 0):
        raise DefinitionError(
            f"{path}: {needed} practice and control images are needed; the packs have {clean or 0} clean ones"
        )
