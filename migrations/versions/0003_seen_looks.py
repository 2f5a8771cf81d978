"""Looks at the primary comparison, as they were when they were first shown

Revision: 0003
Before: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "seen_looks",
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("simulated", sa.Boolean(), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("comparison", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["study_id"], ["studies.id"], name=op.f("fk_seen_looks_study_id")),
        sa.PrimaryKeyConstraint("study_id", "simulated", "n", name=op.f("pk_seen_looks")),
    )


def downgrade() -> None:
    op.drop_table("seen_looks")
