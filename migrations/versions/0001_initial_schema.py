"""Initial schema

Revision: 0001
Before:
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "images",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("png", sa.LargeBinary(), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_images")),
    )
    op.create_table(
        "packs",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("manifest", sa.JSON(), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("models", sa.JSON(), nullable=False),
        sa.Column("grids", sa.JSON(), nullable=False),
        sa.Column("imported_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_packs")),
        sa.UniqueConstraint("sha256", name=op.f("uq_packs_sha256")),
    )
    with op.batch_alter_table("packs", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_packs_name"), ["name"], unique=False)

    op.create_table(
        "studies",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("slug", sa.String(length=60), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("definition", sa.JSON(), nullable=False),
        sa.Column("open", sa.Boolean(), nullable=False),
        sa.Column("activated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_studies")),
        sa.UniqueConstraint("slug", "sha256", name=op.f("uq_studies_slug_sha256")),
    )
    op.create_table(
        "clean_images",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("pack_id", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("source_index", sa.Integer(), nullable=False),
        sa.Column("source_label", sa.String(length=50), nullable=False),
        sa.Column("role", sa.String(length=10), nullable=False),
        sa.CheckConstraint("role in ('original', 'clean')", name=op.f("ck_clean_images_role")),
        sa.ForeignKeyConstraint(["pack_id"], ["packs.id"], name=op.f("fk_clean_images_pack_id")),
        sa.ForeignKeyConstraint(["sha256"], ["images.sha256"], name=op.f("fk_clean_images_sha256")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_clean_images")),
        sa.UniqueConstraint("pack_id", "source_index", name=op.f("uq_clean_images_pack_id_source_index")),
    )
    op.create_table(
        "participants",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("token", sa.String(length=64), nullable=False),
        sa.Column("pseudonym", sa.String(length=20), nullable=False),
        sa.Column("simulated", sa.Boolean(), nullable=False),
        sa.Column("grid_order", sa.JSON(), nullable=False),
        sa.Column("consented_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("completion_code", sa.String(length=100), nullable=True),
        sa.Column("withdrawn_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["study_id"], ["studies.id"], name=op.f("fk_participants_study_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_participants")),
        sa.UniqueConstraint("study_id", "number", name=op.f("uq_participants_study_id_number")),
        sa.UniqueConstraint("study_id", "pseudonym", name=op.f("uq_participants_study_id_pseudonym")),
        sa.UniqueConstraint("token", name=op.f("uq_participants_token")),
    )
    op.create_table(
        "stimuli",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("pack_id", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=100), nullable=False),
        sa.Column("source_index", sa.Integer(), nullable=False),
        sa.Column("source_label", sa.String(length=50), nullable=False),
        sa.Column("target_label", sa.String(length=50), nullable=False),
        sa.Column("prediction", sa.String(length=50), nullable=False),
        sa.Column("target_probability", sa.Double(), nullable=False),
        sa.Column("iterations", sa.Integer(), nullable=False),
        sa.Column("pixels_changed", sa.Integer(), nullable=False),
        sa.Column("l2", sa.Double(), nullable=False),
        sa.Column("linf", sa.Double(), nullable=False),
        sa.CheckConstraint(
            "source_label <> target_label", name=op.f("ck_stimuli_target_differs_from_source")
        ),
        sa.ForeignKeyConstraint(["pack_id"], ["packs.id"], name=op.f("fk_stimuli_pack_id")),
        sa.ForeignKeyConstraint(["sha256"], ["images.sha256"], name=op.f("fk_stimuli_sha256")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_stimuli")),
        sa.UniqueConstraint(
            "pack_id",
            "model",
            "source_index",
            "target_label",
            name=op.f("uq_stimuli_pack_id_model_source_index_target_label"),
        ),
    )
    with op.batch_alter_table("stimuli", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_stimuli_sha256"), ["sha256"], unique=False)

    op.create_table(
        "study_packs",
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("pack_id", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["pack_id"], ["packs.id"], name=op.f("fk_study_packs_pack_id")),
        sa.ForeignKeyConstraint(["study_id"], ["studies.id"], name=op.f("fk_study_packs_study_id")),
        sa.PrimaryKeyConstraint("study_id", "pack_id", name=op.f("pk_study_packs")),
        sa.UniqueConstraint("study_id", "position", name=op.f("uq_study_packs_study_id_position")),
    )
    op.create_table(
        "unmaskings",
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("simulated", sa.Boolean(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["study_id"], ["studies.id"], name=op.f("fk_unmaskings_study_id")),
        sa.PrimaryKeyConstraint("study_id", "simulated", name=op.f("pk_unmaskings")),
    )
    op.create_table(
        "comments",
        sa.Column("participant_id", sa.Integer(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("written_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["participant_id"], ["participants.id"], name=op.f("fk_comments_participant_id")
        ),
        sa.PrimaryKeyConstraint("participant_id", name=op.f("pk_comments")),
    )
    op.create_table(
        "recruiter_ids",
        sa.Column("participant_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=50), nullable=False),
        sa.Column("value", sa.String(length=200), nullable=False),
        sa.ForeignKeyConstraint(
            ["participant_id"], ["participants.id"], name=op.f("fk_recruiter_ids_participant_id")
        ),
        sa.PrimaryKeyConstraint("participant_id", "name", name=op.f("pk_recruiter_ids")),
    )
    op.create_table(
        "trials",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("participant_id", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("judging_order", sa.Integer(), nullable=True),
        sa.Column("kind", sa.String(length=10), nullable=False),
        sa.Column("stimulus_id", sa.Integer(), nullable=True),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("placebo_label", sa.String(length=50), nullable=True),
        sa.CheckConstraint(
            "kind <> 'main' or (stimulus_id is not null and placebo_label is not null)",
            name=op.f("ck_trials_main_is_complete"),
        ),
        sa.CheckConstraint("kind in ('main', 'practice', 'control')", name=op.f("ck_trials_kind")),
        sa.ForeignKeyConstraint(
            ["participant_id"], ["participants.id"], name=op.f("fk_trials_participant_id")
        ),
        sa.ForeignKeyConstraint(["sha256"], ["images.sha256"], name=op.f("fk_trials_sha256")),
        sa.ForeignKeyConstraint(["stimulus_id"], ["stimuli.id"], name=op.f("fk_trials_stimulus_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_trials")),
        sa.UniqueConstraint(
            "participant_id", "judging_order", name=op.f("uq_trials_participant_id_judging_order")
        ),
        sa.UniqueConstraint("participant_id", "position", name=op.f("uq_trials_participant_id_position")),
        sa.UniqueConstraint(
            "participant_id", "stimulus_id", name=op.f("uq_trials_participant_id_stimulus_id")
        ),
    )
    with op.batch_alter_table("trials", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_trials_stimulus_id"), ["stimulus_id"], unique=False)

    op.create_table(
        "judgments",
        sa.Column("trial_id", sa.Integer(), nullable=False),
        sa.Column("answer_id", sa.Uuid(), nullable=False),
        sa.Column("plausible", sa.Boolean(), nullable=False),
        sa.Column("rt_ms", sa.Double(), nullable=True),
        sa.Column("display", sa.JSON(), nullable=False),
        sa.Column("answered_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("rt_ms is null or rt_ms >= 0", name=op.f("ck_judgments_rt_not_negative")),
        sa.ForeignKeyConstraint(["trial_id"], ["trials.id"], name=op.f("fk_judgments_trial_id")),
        sa.PrimaryKeyConstraint("trial_id", name=op.f("pk_judgments")),
        sa.UniqueConstraint("answer_id", name=op.f("uq_judgments_answer_id")),
    )
    op.create_table(
        "responses",
        sa.Column("trial_id", sa.Integer(), nullable=False),
        sa.Column("answer_id", sa.Uuid(), nullable=False),
        sa.Column("label", sa.String(length=50), nullable=False),
        sa.Column("runner_up", sa.String(length=50), nullable=True),
        sa.Column("rt_ms", sa.Double(), nullable=True),
        sa.Column("display", sa.JSON(), nullable=False),
        sa.Column("answered_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "runner_up is null or (label = 'none' and runner_up = 'none')"
            " or (label <> 'none' and runner_up <> label)",
            name=op.f("ck_responses_runner_up_differs"),
        ),
        sa.CheckConstraint("rt_ms is null or rt_ms >= 0", name=op.f("ck_responses_rt_not_negative")),
        sa.ForeignKeyConstraint(["trial_id"], ["trials.id"], name=op.f("fk_responses_trial_id")),
        sa.PrimaryKeyConstraint("trial_id", name=op.f("pk_responses")),
        sa.UniqueConstraint("answer_id", name=op.f("uq_responses_answer_id")),
    )


def downgrade() -> None:
    op.drop_table("responses")
    op.drop_table("judgments")
    with op.batch_alter_table("trials", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_trials_stimulus_id"))

    op.drop_table("trials")
    op.drop_table("recruiter_ids")
    op.drop_table("comments")
    op.drop_table("unmaskings")
    op.drop_table("study_packs")
    with op.batch_alter_table("stimuli", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_stimuli_sha256"))

    op.drop_table("stimuli")
    op.drop_table("participants")
    op.drop_table("clean_images")
    op.drop_table("studies")
    with op.batch_alter_table("packs", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_packs_name"))

    op.drop_table("packs")
    op.drop_table("images")
