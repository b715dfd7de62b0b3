"""Replays one file and says, level by level, whether this core did as etcd's."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from pathlib import Path

from tests.core.transcripts.grammar import Directive, parse_directives
from tests.core.transcripts.projection import Projection, Unreadable, project
from tests.core.transcripts.replay import Cluster

LEVELS = ("state", "message")
WAIVED_MAX = 4
"""Files that may be waived at the level of messages."""


@dataclass(frozen=True)
class Waiver:
    """A difference that is meant: one block of one file at one level."""

    file: str
    line: int
    level: str
    reason: str


WAIVERS: tuple[Waiver, ...] = ()


@dataclass
class Verdict:
    """One file at one level."""

    file: str
    level: str
    compared: int = 0
    """Blocks that printed something to compare."""
    differences: list[str] = field(default_factory=list)
    waived: list[Waiver] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.differences


def judge_file(path: Path) -> list[Verdict]:
    """Both verdicts on a file. After the first difference of a level that level is not looked at again:
    what follows differs in consequence."""
    return judge_text(path.name, path.read_text("utf-8"))


def judge_text(name: str, text: str) -> list[Verdict]:
    verdicts = [Verdict(name, level) for level in LEVELS]
    cluster = Cluster()
    for block in parse_directives(text):
        where = f"{name}:{block.line}: {block}"
        try:
            ours = project(block, cluster.run(block))
            loud = cluster.prints(block) and block.command != "log-level"
            theirs = project(block, block.expected)
        except (AssertionError, ValueError, KeyError, IndexError) as error:
            for verdict in verdicts:
                if verdict.passed:
                    kind = "unreadable" if isinstance(error, Unreadable) else type(error).__name__
                    verdict.differences.append(f"{where}\n  {kind}: {error}")
            break
        for verdict in verdicts:
            if verdict.passed:
                _compare(verdict, block, where, theirs, ours, loud=loud)
    if not any(verdict.compared or not verdict.passed for verdict in verdicts):
        verdicts[0].differences.append(f"{name}: nothing to compare")
    return verdicts


def _compare(
    verdict: Verdict, block: Directive, where: str, theirs: Projection, ours: Projection, *, loud: bool
) -> None:
    left, right = (_lines(verdict.level, one, loud=loud) for one in (theirs, ours))
    verdict.compared += bool(left)
    if left == right:
        return
    for waiver in WAIVERS:
        if (waiver.file, waiver.line, waiver.level) == (verdict.file, block.line, verdict.level):
            verdict.waived.append(waiver)
            return
    diff = [line for line in difflib.ndiff(left, right) if not line.startswith("?")]
    verdict.differences.append("\n  ".join([where, *diff]))


def _lines(level: str, projection: Projection, *, loud: bool) -> list[str]:
    """What a level compares of a block, as lines."""
    dropped = ["proposal dropped"] if projection.dropped else []
    if not loud:
        return dropped if level == "state" else []
    if level == "message":
        return "\n".join([str(section) for section in projection.sections]).splitlines()
    lines = dropped + projection.shown
    for node, held in sorted(projection.held.items()):
        for name in ("soft", "hard", "snapshots", "entries", "committed", "must_sync"):
            lines += [f"{node} {name} {value}" for value in getattr(held, name)]
    return lines
