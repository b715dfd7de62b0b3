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

LINES = 30
STARTING = ("importlib", "{built-in method builtins.compile}", "{built-in method marshal.loads}")
"""What a process does before it serves; left out of the shares."""


class Profiled(clusters.Cluster):
    """Every member writes a profile when it stops."""

    def prepare(self) -> None:
        super().prepare()
        for member in self.members:
            python, *rest = member.command
            member.command = [python, "-m", "cProfile", "-o", str(self.profile(member)), *rest]

    def profile(self, member: clusters.Member) -> Path:
        return self.folder / f"{member.name}.prof"


def package_of(path: str, name: str) -> str:
    """The package or library of a function, by the path of its source."""
    for root in ("raft", "kvstore"):
        if f"/{root}/" in path and "site-packages" not in path:
            parts = path.rsplit(f"/{root}/", 1)[1].split("/")
            return f"{root}.{parts[0]}" if len(parts) > 1 else root
    if "/grpc/" in path:
        return "grpc.aio, its waiting for the GIL included"
    if path.endswith("asyncio/runners.py"):
        return "event loop in C: polling, callbacks of grpc.aio, idling"
    return "built-in functions" if path == "~" else "standard library and others"


def shares(stats: pstats.Stats) -> str:
    """The time spent inside each package's own functions, largest first."""
    packages: dict[str, float] = {}
    functions: dict[tuple[str, int, str], tuple[int, int, float, float, object]] = stats.stats  # type: ignore[attr-defined]  # not in the stubs
    for (path, _, name), (_, _, own, _, _) in functions.items():
        if not any(word in path or word in name for word in STARTING):
            package = package_of(path, name)
            packages[package] = packages.get(package, 0.0) + own
    total = sum(packages.values())
    lines = [
        f"{own:7.2f} s {own / total:6.1%}  {package}"
        for package, own in sorted(packages.items(), key=lambda it: -it[1])
    ]
    return "\n".join(lines)


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
    text.write(shares(stats) + "\n")
    head = f"{options.work}, {options.in_flight} in flight: {result['ops_per_s']:.0f}/s under the profiler\n"
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(head + text.getvalue())
    print(head + text.getvalue())
    return 0


if __name__ == "__main__":
    sys.exit(main())
