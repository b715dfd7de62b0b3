"""`make profile`: where the leader's loop spends its time under load, the profiler's own cost included.

Shares are what to read, not times: the profiler slows small functions most.
"""

from __future__ import annotations

import argparse
import io
import pstats
import sys
import tempfile
from pathlib import Path

from bench import clusters, compare

LINES = 40


class Profiled(clusters.Cluster):
    """Every member writes a profile when it stops."""

    def prepare(self) -> None:
        super().prepare()
        for member in self.members:
            python, *rest = member.command
            member.command = [python, "-m", "cProfile", "-o", str(self.profile(member)), *rest]

    def profile(self, member: clusters.Member) -> Path:
        return self.folder / f"{member.name}.prof"


def main() -> int:
    parser = argparse.ArgumentParser(prog="make profile", description=__doc__)
    parser.add_argument("--work", choices=compare.WORKS, default="put")
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--out", type=Path, default=Path("bench/results/profile.txt"))
    options = parser.parse_args()
    program = [sys.executable, "-m", "kvstore", "server"]
    with tempfile.TemporaryDirectory(prefix="profile-") as folder:
        with Profiled(label="ours", program=program, folder=Path(folder)) as cluster:
            leader = cluster.leader()
            spec = {
                "endpoints": [leader.endpoint],
                "work": options.work,
                "in_flight": options.in_flight,
                "seconds": options.seconds,
                "fill": True,
            }
            result = compare.measure(cluster, spec)
            assert isinstance(cluster, Profiled)
            leader.stop()
            text = io.StringIO()
            stats = pstats.Stats(str(cluster.profile(leader)), stream=text)
        stats.sort_stats("tottime").print_stats(LINES)
    head = f"{options.work}, {options.in_flight} in flight: {result['ops_per_s']:.0f}/s under the profiler\n"
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(head + text.getvalue())
    print(head + text.getvalue())
    return 0


if __name__ == "__main__":
    sys.exit(main())
