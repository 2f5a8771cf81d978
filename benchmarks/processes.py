"""What processes use: CPU seconds and memory, with their children's, from Linux's /proc."""

import os
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


def family(roots: list[int]) -> list[int]:
    """The processes and all that descend from them."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and (fields := _stat(int(folder.name))):
            parents.setdefault(int(fields[1]), []).append(int(folder.name))
    found = list(roots)
    for process in found:
        found += [child for child in parents.get(process, []) if child not in found]
    return found


def cpu_seconds(roots: list[int]) -> float:
    """Of the processes and all that descend from them, those that have ended and been waited for included."""
    return sum(sum(map(int, fields[11:15])) / TICKS for p in family(roots) if (fields := _stat(p)))


def resident_bytes(roots: list[int]) -> int:
    """Memory that the processes and all that descend from them hold."""
    return sum(int(fields[21]) * PAGE for p in family(roots) if (fields := _stat(p)))


def _stat(process: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; none where the process has gone."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
