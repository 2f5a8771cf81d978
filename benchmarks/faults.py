"""`python -m benchmarks.faults`: participants, all at once, at a server that is killed again and again.

A real server on a temporary SQLite database with the bundled pack and study; every bot is a thread that sends what
was not acknowledged again, as a browser's outbox does. Exit status 1 if an answer was lost or doubled.
"""

import argparse
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path
from time import perf_counter

from app.settings import ROOT, Settings
from ml import pack as pack_format
from tests.app.faults import count, crowd, kill_at_random, killable

ANSWERS = 60  # of one session, at least: the kills are spread over so many


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--participants", type=int, default=200, metavar="N")
    parser.add_argument("--kills", type=int, default=20, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--study", default="mnist")
    args = parser.parse_args()
    pack = pack_format.read(ROOT / "stimuli" / "mnist-jsma")
    with tempfile.TemporaryDirectory() as folder:
        database_url = f"sqlite:///{Path(folder) / 'study.db'}"
        settings = Settings(database_url, "the benchmark's secret", ROOT / "studies", ROOT / "stimuli")
        log = Path(folder) / "server.log"
        with (
            killable(settings, log) as server,
            crowd(server.url, args.study, pack, args.participants, args.seed) as bots,
        ):
            started = perf_counter()
            bots.wait_until(lambda: len(bots.ledger.acknowledged) > 0)
            answers = ANSWERS * args.participants
            kill_at_random(server, bots, args.kills, answers, random.Random(args.seed))
            bots.finish()
            seconds = perf_counter() - started
        counts = count(database_url, bots.ledger)
    print(f"{args.participants} participants at once, {server.kills} kills, seed {args.seed}")
    print(counts)
    for reason, times in Counter(bots.ledger.failures).most_common():
        print(f"  {reason:18}{times:>8}")
    print(f"{'answers per second':20}{counts.acknowledged / seconds:>8.1f}    in {seconds:.0f} s")
    if not counts.sound or counts.finished != args.participants or counts.sessions != args.participants:
        print("answers were lost or doubled, or sessions did not finish")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
