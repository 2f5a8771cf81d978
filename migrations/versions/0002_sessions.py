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


def upgrade() -> None:
    with op.batch_alter_table("participants") as batch:
        batch.add_column(sa.Column("withdrawal_code", sa.String(length=20)))
        batch.add_column(sa.Column("request_id", sa.Uuid()))
        batch.add_column(sa.Column("language", sa.String(length=10), nullable=False, server_default="en"))
        batch.add_column(sa.Column("runner_up_first", sa.Boolean(), nullable=False, server_default=sa.false()))
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
    # From now on a recruiter's id has one session in a study; of those that had several, the first one is it.
    op.execute(
        "update recruiter_ids set identifies_in = ("
        " select studies.slug from participants join studies on studies.id = participants.study_id"
        " where participants.id = recruiter_ids.participant_id"
        ") where name in ('PROLIFIC_PID', 'workerId', 'survey_code', 'id') and participant_id = ("
        " select min(others.participant_id) from recruiter_ids as others"
        " join participants as other on other.id = others.participant_id"
        " join studies as its on its.id = other.study_id"
        " where others.name = recruiter_ids.name and others.value = recruiter_ids.value and not other.simulated"
        " and its.slug = ("
        "  select studies.slug from participants join studies on studies.id = participants.study_id"
        "  where participants.id = recruiter_ids.participant_id))"
    )
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
        for column in ("deleted", "runner_up_first", "language", "request_id", "withdrawal_code"):
            batch.drop_column(column)
