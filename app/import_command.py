"""`import-pack`: check a stimulus pack and store it."""

import argparse
from datetime import UTC, datetime
from pathlib import Path

from app import settings
from app.db import migrated
from app.packs import import_pack
from ml import pack as pack_format


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "directory", type=Path, metavar="DIR", help="the folder with manifest.json and images"
    )


def run(args: argparse.Namespace) -> int:
    """Import the pack: all of it, or nothing with one line that says why not (PackError)."""
    config = settings.load()
    pack = pack_format.read_untrusted(args.directory)
    with migrated(config.database_url) as database, database.preparing() as session:
        _, imported = import_pack(session, pack, datetime.now(UTC))
        session.commit()
    print(f"{pack.name}: {len(pack.stimuli)} stimuli, {imported.value}")
    return 0
