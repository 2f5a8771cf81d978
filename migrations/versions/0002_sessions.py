"""Sessions: languages, recruiters' returns, idempotent beginnings, withdrawal codes, control images

Revision: 0002
Before: 0001
"""

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

ALPHABET = "23456789ABCDEFGHJKLMNPQRSTUVWXYZ"  # as app.participation's at the time of this revision
PERSONAL = ("PROLIFIC_PID", "workerId", "survey_code", "id")  # as app.recruiters' then


def upgrade() -> None:
    with op.batch_alter_table("participants") as batch:
        batch.add_column(sa.Column("withdrawal_code", sa.String(length=20)))
        batch.add_column(sa.Column("request_id", sa.Uuid()))
        batch.add_column(sa.Column("language", sa.String(length=10), nullable=False, server_default="en"))
        batch.add_column(
            sa.Column("consent_language", sa.String(length=10), nullable=False, server_default="en")
        )
        batch.add_column(
            sa.Column("runner_up_first", sa.Boolean(), nullable=False, server_default=sa.false())
        )
        batch.add_column(sa.Column("deleted", sa.JSON()))
    connection = op.get_bind()
    participants = sa.table(
        "participants",
        sa.column("id", sa.Integer()),
        sa.column("withdrawal_code", sa.String()),
    )
    for (participant,) in connection.execute(sa.select(participants.c.id)).all():
        code = "-".join("".join(secrets.choice(ALPHABET) for _ in range(4)) for _ in range(3))
        connection.execute(
            participants.update().where(participants.c.id == participant).values(withdrawal_code=code)
        )
    # How much those who had withdrawn had deleted was not kept.
    connection.execute(
        sa.text("update participants set deleted = :nothing where withdrawn_at is not null").bindparams(
            sa.bindparam("nothing", {}, type_=sa.JSON())
        )
    )
    with op.batch_alter_table("participants") as batch:
        batch.alter_column("withdrawal_code", existing_type=sa.String(length=20), nullable=False)
        batch.alter_column("language", existing_type=sa.String(length=10), server_default=None)
        batch.alter_column("consent_language", existing_type=sa.String(length=10), server_default=None)
        batch.alter_column("runner_up_first", existing_type=sa.Boolean(), server_default=None)
        batch.create_unique_constraint(batch.f("uq_participants_withdrawal_code"), ["withdrawal_code"])
        batch.create_unique_constraint(batch.f("uq_participants_request_id"), ["request_id"])
        batch.create_check_constraint(
            batch.f("ck_participants_withdrawal_is_whole"), "(withdrawn_at is null) = (deleted is null)"
        )
    with op.batch_alter_table("recruiter_ids") as batch:
        batch.add_column(sa.Column("identifies_in", sa.String(length=60)))
        batch.create_unique_constraint(
            batch.f("uq_recruiter_ids_identifies_in_name_value"), ["identifies_in", "name", "value"]
        )
    _recognize(connection)
    with op.batch_alter_table("trials") as batch:
        batch.add_column(sa.Column("clean_image_id", sa.Integer()))
    op.execute(
        "update trials set clean_image_id = ("
        " select min(clean_images.id) from clean_images"
        " join study_packs on study_packs.pack_id = clean_images.pack_id"
        " join participants on participants.study_id = study_packs.study_id"
        " where participants.id = trials.participant_id and clean_images.sha256 = trials.sha256"
        ") where kind <> 'main'"
    )
    with op.batch_alter_table("trials") as batch:
        batch.create_foreign_key(
            batch.f("fk_trials_clean_image_id"), "clean_images", ["clean_image_id"], ["id"]
        )
        batch.create_check_constraint(
            batch.f("ck_trials_others_are_clean"), "(kind = 'main') = (clean_image_id is null)"
        )


def _recognize(connection: sa.Connection) -> None:
    """A recruiter's id has one session in a study from now on: of several the last one finished, else the last."""
    ids: dict[int, dict[str, str]] = {}
    people: dict[int, tuple[bool, int]] = {}
    slugs: dict[int, str] = {}
    for person, finished, slug, name, value in connection.execute(
        sa.text(
            "select participants.id, participants.finished_at is not null, studies.slug,"
            " recruiter_ids.name, recruiter_ids.value from recruiter_ids"
            " join participants on participants.id = recruiter_ids.participant_id"
            " join studies on studies.id = participants.study_id where not participants.simulated"
        )
    ):
        ids.setdefault(person, {})[name] = value
        people[person] = (bool(finished), person)
        slugs[person] = slug
    sessions: dict[tuple[str, str, str], int] = {}
    for person in sorted(people, key=people.__getitem__):
        name = next((name for name in PERSONAL if name in ids[person]), None)
        if name is not None:
            sessions[slugs[person], name, ids[person][name]] = person
    for (slug, name, _), person in sessions.items():
        connection.execute(
            sa.text(
                "update recruiter_ids set identifies_in = :slug where participant_id = :person and name = :name"
            ),
            {"slug": slug, "person": person, "name": name},
        )


def downgrade() -> None:
    with op.batch_alter_table("trials") as batch:
        batch.drop_constraint(batch.f("ck_trials_others_are_clean"), type_="check")
        batch.drop_constraint(batch.f("fk_trials_clean_image_id"), type_="foreignkey")
        batch.drop_column("clean_image_id")
    with op.batch_alter_table("recruiter_ids") as batch:
        batch.drop_constraint(batch.f("uq_recruiter_ids_identifies_in_name_value"), type_="unique")
        batch.drop_column("identifies_in")
    with op.batch_alter_table("participants") as batch:
        batch.drop_constraint(batch.f("ck_participants_withdrawal_is_whole"), type_="check")
        batch.drop_constraint(batch.f("uq_participants_request_id"), type_="unique")
        batch.drop_constraint(batch.f("uq_participants_withdrawal_code"), type_="unique")
        for column in (
            "deleted",
            "runner_up_first",
            "consent_language",
            "language",
            "request_id",
            "withdrawal_code",
        ):
            batch.drop_column(column)
