"""The tables. Rules that must never be broken are constraints here, not only checks in code."""

import uuid
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    CheckConstraint,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    LargeBinary,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

NONE_PLAUSIBLE = "none"  # stored as the answer "none is plausible"; no pack may have a label of this name


class Utc(TypeDecorator[datetime]):
    """An instant in UTC; SQLite keeps no time zone, so it is put back on reading."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("an instant needs its time zone")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 (SQLAlchemy reads it from the class)
        datetime: Utc,
        dict[str, Any]: JSON,
        list[str]: JSON,
    }


class Pack(Base):
    """A stimulus pack as it was imported; a pack never changes, another content is another row."""

    __tablename__ = "packs"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(100), index=True)
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    manifest: Mapped[dict[str, Any]] = mapped_column(deferred=True)
    labels: Mapped[list[str]]
    models: Mapped[list[str]]
    grids: Mapped[dict[str, Any]]  # model -> image sha256
    imported_at: Mapped[datetime]


class Image(Base):
    """A PNG, known by its hash; in the database, so that any number of servers can show it."""

    __tablename__ = "images"
    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    png: Mapped[bytes] = mapped_column(LargeBinary, deferred=True)
    width: Mapped[int]
    height: Mapped[int]


class Stimulus(Base):
    """One adversarial image of a pack."""

    __tablename__ = "stimuli"
    __table_args__ = (
        UniqueConstraint("pack_id", "model", "source_index", "target_label"),
        CheckConstraint("source_label <> target_label", name="target_differs_from_source"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    pack_id: Mapped[int] = mapped_column(ForeignKey("packs.id"))
    sha256: Mapped[str] = mapped_column(ForeignKey("images.sha256"), index=True)
    model: Mapped[str] = mapped_column(String(100))
    source_index: Mapped[int]
    source_label: Mapped[str] = mapped_column(String(50))
    target_label: Mapped[str] = mapped_column(String(50))
    prediction: Mapped[str] = mapped_column(String(50))
    target_probability: Mapped[float]
    iterations: Mapped[int]
    pixels_changed: Mapped[int]
    l2: Mapped[float]
    linf: Mapped[float]


class CleanImage(Base):
    """An unmodified test image of a pack: the source of a stimulus, or one kept for practice and control trials."""

    __tablename__ = "clean_images"
    __table_args__ = (
        UniqueConstraint("pack_id", "source_index"),
        CheckConstraint("role in ('original', 'clean')", name="role"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    pack_id: Mapped[int] = mapped_column(ForeignKey("packs.id"))
    sha256: Mapped[str] = mapped_column(ForeignKey("images.sha256"))
    source_index: Mapped[int]
    source_label: Mapped[str] = mapped_column(String(50))
    role: Mapped[str] = mapped_column(String(10))


class Study(Base):
    """One version of a study: its file and its packs, frozen under a hash."""

    __tablename__ = "studies"
    __table_args__ = (UniqueConstraint("slug", "sha256"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    slug: Mapped[str] = mapped_column(String(60))
    sha256: Mapped[str] = mapped_column(String(64))
    definition: Mapped[dict[str, Any]]
    open: Mapped[bool]  # whether its file is there: a study without one takes no new participants
    activated_at: Mapped[datetime]  # of the versions of one slug the latest takes participants

    packs: Mapped[list["StudyPack"]] = relationship(order_by="StudyPack.position")

    @property
    def version(self) -> str:
        return self.sha256[:12]


class StudyPack(Base):
    """Which packs a study version shows."""

    __tablename__ = "study_packs"
    __table_args__ = (UniqueConstraint("study_id", "position"),)
    study_id: Mapped[int] = mapped_column(ForeignKey("studies.id"), primary_key=True)
    pack_id: Mapped[int] = mapped_column(ForeignKey("packs.id"), primary_key=True)
    position: Mapped[int]

    pack: Mapped[Pack] = relationship()


class Unmasking(Base):
    """That the comparisons were shown before the target N, when, and at how many participants; never removed."""

    __tablename__ = "unmaskings"
    study_id: Mapped[int] = mapped_column(ForeignKey("studies.id"), primary_key=True)
    simulated: Mapped[bool] = mapped_column(
        primary_key=True
    )  # looking at pretended data unmasks no real ones
    at: Mapped[datetime]
    n: Mapped[int]  # complete, included participants at that time


class SeenLook(Base):
    """A look that the study file declares, as it was when it was first shown; never removed nor changed."""

    __tablename__ = "seen_looks"
    study_id: Mapped[int] = mapped_column(ForeignKey("studies.id"), primary_key=True)
    simulated: Mapped[bool] = mapped_column(primary_key=True)
    n: Mapped[int] = mapped_column(primary_key=True)  # complete, included participants
    at: Mapped[datetime]
    comparison: Mapped[dict[str, Any]]  # the fields of results.Comparison


class Participant(Base):
    """One person's session, from consent on."""

    __tablename__ = "participants"
    __table_args__ = (
        UniqueConstraint("study_id", "number"),
        UniqueConstraint("study_id", "pseudonym"),
        CheckConstraint("(withdrawn_at is null) = (deleted is null)", name="withdrawal_is_whole"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("studies.id"))
    number: Mapped[int]  # 1, 2, ... in the order of arrival; enters the assignment
    token: Mapped[str] = mapped_column(String(64), unique=True)  # the secret part of this person's link
    pseudonym: Mapped[str] = mapped_column(String(20))  # drawn apart from the token; the only name in exports
    withdrawal_code: Mapped[str] = mapped_column(String(20), unique=True)  # private; deletes without the link
    request_id: Mapped[uuid.UUID | None] = mapped_column(
        unique=True
    )  # the client's: asking again begins nothing
    language: Mapped[str] = mapped_column(String(10))  # of the pages
    consent_language: Mapped[str] = mapped_column(String(10))  # in which the consent was read
    runner_up_first: Mapped[bool]  # which of the two questions stands first for them
    simulated: Mapped[bool]
    grid_order: Mapped[list[str]]  # "pack/model", as the unnamed grids are shown: A, B, C, ...
    consented_at: Mapped[datetime]
    last_seen_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
    completion_code: Mapped[str | None] = mapped_column(String(100))
    withdrawn_at: Mapped[datetime | None]
    deleted: Mapped[dict[str, Any] | None] = mapped_column(
        JSON(none_as_null=True)
    )  # rows that it deleted, by kind

    study: Mapped[Study] = relationship()


class RecruiterId(Base):
    """What a recruiter put into the link (PROLIFIC_PID and so on): apart from the answers, exported on request."""

    __tablename__ = "recruiter_ids"
    __table_args__ = (UniqueConstraint("identifies_in", "name", "value"),)
    participant_id: Mapped[int] = mapped_column(ForeignKey("participants.id"), primary_key=True)
    name: Mapped[str] = mapped_column(String(50), primary_key=True)
    value: Mapped[str] = mapped_column(String(200))
    # The study (all versions) in which this id has one session and no second; null where it may have several.
    identifies_in: Mapped[str | None] = mapped_column(String(60))


class Trial(Base):
    """One image that one participant is asked about."""

    __tablename__ = "trials"
    __table_args__ = (
        UniqueConstraint("participant_id", "position"),
        UniqueConstraint("participant_id", "judging_order"),
        UniqueConstraint("participant_id", "stimulus_id"),
        CheckConstraint("kind in ('main', 'practice', 'control')", name="kind"),
        CheckConstraint(
            "kind <> 'main' or (stimulus_id is not null and placebo_label is not null)",
            name="main_is_complete",
        ),
        CheckConstraint("(kind = 'main') = (clean_image_id is null)", name="others_are_clean"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    participant_id: Mapped[int] = mapped_column(ForeignKey("participants.id"))
    position: Mapped[int]
    judging_order: Mapped[int | None]  # null where it is never judged
    kind: Mapped[str] = mapped_column(String(10))
    stimulus_id: Mapped[int | None] = mapped_column(ForeignKey("stimuli.id"), index=True)
    clean_image_id: Mapped[int | None] = mapped_column(ForeignKey("clean_images.id"))  # practice and control
    sha256: Mapped[str] = mapped_column(ForeignKey("images.sha256"))
    placebo_label: Mapped[str | None] = mapped_column(String(50))

    stimulus: Mapped[Stimulus | None] = relationship()
    response: Mapped["Response | None"] = relationship()
    judgment: Mapped["Judgment | None"] = relationship()


class Response(Base):
    """A participant's labels for one trial, given blind."""

    __tablename__ = "responses"
    __table_args__ = (
        CheckConstraint(
            "runner_up is null or (label = 'none' and runner_up = 'none')"
            " or (label <> 'none' and runner_up <> label)",
            name="runner_up_differs",
        ),
        CheckConstraint("rt_ms is null or rt_ms >= 0", name="rt_not_negative"),
    )
    trial_id: Mapped[int] = mapped_column(ForeignKey("trials.id"), primary_key=True)  # one response a trial
    answer_id: Mapped[uuid.UUID] = mapped_column(unique=True)
    label: Mapped[str] = mapped_column(String(50))
    runner_up: Mapped[str | None] = mapped_column(String(50))  # null where it was not asked
    rt_ms: Mapped[float | None]
    display: Mapped[dict[str, Any]]
    answered_at: Mapped[datetime]


class Judgment(Base):
    """A participant's verdict on the network's answer to one trial."""

    __tablename__ = "judgments"
    __table_args__ = (CheckConstraint("rt_ms is null or rt_ms >= 0", name="rt_not_negative"),)
    trial_id: Mapped[int] = mapped_column(ForeignKey("trials.id"), primary_key=True)  # one judgment a trial
    answer_id: Mapped[uuid.UUID] = mapped_column(unique=True)
    plausible: Mapped[bool]
    rt_ms: Mapped[float | None]
    display: Mapped[dict[str, Any]]
    answered_at: Mapped[datetime]


class Comment(Base):
    """What a participant wrote about the grids."""

    __tablename__ = "comments"
    participant_id: Mapped[int] = mapped_column(ForeignKey("participants.id"), primary_key=True)
    text: Mapped[str] = mapped_column(Text)
    written_at: Mapped[datetime]


class ResearcherPassword(Base):
    """The researcher's password, as Argon2 hashes it; one row at most, none until one is set."""

    __tablename__ = "researcher_password"
    __table_args__ = (CheckConstraint("id = 1", name="only_one"),)
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False, default=1)
    hash: Mapped[str] = mapped_column(String(200))
    set_at: Mapped[datetime]


class ResearcherSession(Base):
    """That somebody is signed in, from here on until they sign out; without the token that proves it."""

    __tablename__ = "researcher_sessions"
    token_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    began_at: Mapped[datetime]
    last_seen_at: Mapped[datetime]  # to a few minutes


class SigninLink(Base):
    """A link that signs in once."""

    __tablename__ = "signin_links"
    token_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    expires_at: Mapped[datetime]
    used_at: Mapped[datetime | None]


class AuditEntry(Base):
    """What a researcher did, or that a participant withdrew; never changed nor removed (app/audit.py)."""

    __tablename__ = "audit_log"
    __table_args__ = (Index(None, "event", "at"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime]
    event: Mapped[str] = mapped_column(String(40))
    study: Mapped[str | None] = mapped_column(String(60))  # its slug, which outlives its rows
    detail: Mapped[dict[str, Any]]
