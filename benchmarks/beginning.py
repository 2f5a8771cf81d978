"""`python -m benchmarks.beginning`: what it costs to begin a session in a study that already has many.

Each study is filled directly with finished sessions, in a SQLite file. One process then begins sessions as the
server does, the first of them apart, which finds nothing remembered; the time is the processor's.
"""

import argparse
import random
import statistics
import tempfile
from datetime import timedelta
from time import process_time

from app import enrollment
from app.db import Database
from app.enrollment import Beginning, Remembered
from app.serving import prepare
from app.settings import ROOT, Settings
from app.web import now
from benchmarks.dashboard import fill


def main() -> None:
    """Print one line a size: milliseconds for the first session and, as a median, for the ones after it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.beginning", description=__doc__)
    parser.add_argument("--finished", type=int, nargs="+", default=[0, 1000, 5000])
    parser.add_argument("--begin", type=int, default=50, metavar="N", help="sessions begun at each size")
    args = parser.parse_args()
    print("finished  first ms  then ms")
    for finished in args.finished:
        with tempfile.TemporaryDirectory() as folder:
            url = f"sqlite:///{folder}/study.db"
            settings = Settings(url, "the benchmark's secret", ROOT / "studies", ROOT / "stimuli")
            prepare(settings)
            fill(settings, finished, random.Random(0))
            database = Database(url)
            remembered, took = Remembered(), []
            for i in range(args.begin):
                before = process_time()
                with database.write() as session:
                    enrollment.start(
                        session, Beginning("mnist", {}), now() + timedelta(seconds=i), remembered
                    )
                took.append((process_time() - before) * 1000)
            database.close()
        print(f"{finished:8}  {took[0]:8.1f}  {statistics.median(took[1:]):7.1f}", flush=True)


if __name__ == "__main__":
    main()
