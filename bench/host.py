"""What the machine says about a measurement: CPU time per process, stolen time, and what it is."""

from __future__ import annotations

import os
import platform
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, all its threads, since it began."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND


class StealMeter:
    """The share of the machine's time that the host took away, since the meter was made."""

    def __init__(self) -> None:
        self.before = self._read()

    @staticmethod
    def _read() -> tuple[int, int]:
        numbers = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        return sum(numbers), numbers[7]

    def share(self) -> float:
        total, stolen = self._read()
        return (stolen - self.before[1]) / max(1, total - self.before[0])


def description() -> dict[str, object]:
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }
