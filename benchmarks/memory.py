"""`python -m benchmarks.memory`: what a server process holds while sessions come and go.

Participants without think time play session after session at one server on SQLite; after each slice of time its
memory is read. The slope is the least squares line through the second half: the first half fills caches and pools.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import load
from benchmarks.processes import resident_bytes

MIB = 2**20


def main() -> None:
    """Print one line a slice, then the slope."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--sessions", type=int, default=1200, metavar="N", help="played to their end")
    parser.add_argument("--participants", type=int, default=50, metavar="N", help="at once")
    parser.add_argument("--seconds", type=float, default=20, help="in which sessions begin, of each slice")
    args = parser.parse_args()
    print("sessions   answers   memory MiB", flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with load.app(folder, f"sqlite:///{folder / 'study.db'}", "api", 0) as target:
            sessions = answers = 0
            while sessions < args.sessions:
                run = load.measure(target, args.participants, args.seconds, folder, alone=False)
                for error, times in run.errors.items():
                    print(f"{times} times {error}", flush=True)
                sessions, answers = sessions + run.sessions, answers + len(run.ms)
                rows.append((sessions, answers, resident_bytes(target.processes) / MIB))
                print(f"{sessions:8}  {answers:8}  {rows[-1][2]:11.1f}", flush=True)
    half = np.array(rows[len(rows) // 2 :])
    per_session = np.polyfit(half[:, 0], half[:, 2], 1)[0] if len(half) > 1 else np.nan
    print(f"{per_session * 1024:.2f} KiB a session in the second half")


if __name__ == "__main__":
    main()
