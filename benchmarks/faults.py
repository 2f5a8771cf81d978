"""`python -m benchmarks.faults`: participants, all at once, at server processes that are killed again and again.

Real servers on a temporary SQLite or PostgreSQL database with the bundled pack and study; every bot is a thread
that sends what was not acknowledged again, as a browser's outbox does, to the next server where its own is gone.
Exit status 1 if an answer was lost or doubled, or images were assigned otherwise than by one process alone.
"""

import argparse
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

from app.serving import prepare
from app.settings import ROOT, Settings
from ml import pack as pack_format
from tests.app import databases
from tests.app.databases import Databases
from tests.app.faults import (
    KillableServer,
    assigned_by_one_process,
    assignment,
    count,
    crowd,
    kill_at_random,
    killable,
    several,
)

PATIENCE_S = 900.0  # a busy machine is no defect: who waits waits
ANSWERS = 60  # of one session, at least: the kills are spread over so many


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--database", choices=databases.KINDS, default="sqlite")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="servers, each at its own port")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes of one server")
    parser.add_argument("--participants", type=int, default=200, metavar="N")
    parser.add_argument("--kills", type=int, default=20, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--study", default="mnist")
    args = parser.parse_args()
    if args.processes > 1 and args.workers > 1:
        parser.error("several servers have one process each: --processes or --workers")
    pack = pack_format.read(ROOT / "stimuli" / "mnist-jsma")
    with tempfile.TemporaryDirectory() as name, databases.server() as server:
        made = Databases(args.database, server)
        folder = Path(name)
        settings = Settings(
            made.new(folder), "only for this benchmark's run", ROOT / "studies", ROOT / "stimuli"
        )
        prepare(settings)
        (folder / "alone").mkdir()
        alone = assigned_by_one_process(
            made.copy(settings.database_url, folder / "alone"), args.study, args.participants
        )
        with (
            serving(settings, folder / "server.log", args.processes, args.workers) as servers,
            crowd(
                [s.url for s in servers], args.study, pack, args.participants, args.seed, PATIENCE_S
            ) as bots,
        ):
            started = perf_counter()
            bots.wait_until(lambda: len(bots.ledger.acknowledged) > 0)
            answers = ANSWERS * args.participants
            kill_at_random(servers, bots, args.kills, answers, random.Random(args.seed))
            bots.finish()
            seconds = perf_counter() - started
        counts = count(settings.database_url, bots.ledger)
        alike = assignment(settings.database_url) == alone
    print(
        f"{args.participants} participants at once, {args.database}, {max(args.processes, args.workers)} processes"
        f"{' of one server' if args.workers > 1 else ''}, {sum(s.kills for s in servers)} kills, seed {args.seed}"
    )
    print(counts)
    for reason, times in Counter(bots.ledger.failures).most_common():
        print(f"  {reason:18}{times:>8}")
    print(f"{'answers per second':20}{counts.acknowledged / seconds:>8.1f}    in {seconds:.0f} s")
    print(f"assigned as by one process alone: {'yes' if alike else 'NO'}")
    whole = counts.finished == counts.sessions == args.participants
    if not (counts.sound and whole and alike):
        print("answers were lost or doubled, sessions did not finish, or images were assigned in another way")
        return 1
    return 0


@contextmanager
def serving(settings: Settings, log: Path, processes: int, workers: int) -> Iterator[list[KillableServer]]:
    if processes > 1:
        with several(settings, log, processes, whole) as servers:
            yield servers
    else:
        with killable(settings, log, workers=workers, popen=whole) as server:
            yield [server]


def whole(args: list[str], **options: Any) -> subprocess.Popen[str]:
    """Each start from its beginning, as after a crash; the tests begin later."""
    return subprocess.Popen(args, cwd=ROOT, text=True, **options)


if __name__ == "__main__":
    sys.exit(main())
