"""Rewrites a backend as that of another cluster: what a restore does to the rows.

Offline and pure. The new cluster has its own members; leases, alarms and lock queues stay. All history
becomes compacted, and the revision is raised by so much that nothing the old cluster may have given out
later can come again: no client takes a new revision, or a fencing token, for an old one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kvstore.engine.commands import encode
from kvstore.engine.engine import STATE_ROW, Engine, pack_state
from kvstore.engine.requests import Compact
from kvstore.engine.results import CompactResult, Member, Outcome, Result
from kvstore.engine.tables import MEMBER_PREFIX, REMOVED_PREFIX, Tables

REVISION_BUMP = 10**9
"""Far beyond what a cluster could have written between a backup and its loss."""


def recovered_rows(
    engine: Engine,
    rows: dict[bytes, bytes],
    *,
    members: Iterable[Member],
    revision_bump: int = REVISION_BUMP,
    mark_compacted: bool = True,
) -> dict[bytes, bytes]:
    """The rows a new cluster of `members` begins with.

    `engine` holds the state, `rows` the backend it was loaded from; whatever it has applied since is
    taken over. Both are used up.
    """
    if mark_compacted:
        step = Compact(engine.revision, physical=True)
        while _is_sweeping(engine.apply(0, 0, [encode(step)], True)):
            step = step._replace(resume=True)
    for row, value in engine.drain_changes():
        if value is None:
            rows.pop(row, None)
        else:
            rows[row] = value
    for row in [row for row in rows if row[:1] in (MEMBER_PREFIX, REMOVED_PREFIX)]:
        del rows[row]
    rows.update((row, value) for row, value in Tables(members).drain_rows() if value is not None)
    revision = engine.revision + revision_bump
    rows[STATE_ROW] = pack_state(revision, revision if mark_compacted else engine.compact_revision)
    return rows


def _is_sweeping(outcomes: Sequence[Outcome[Result]]) -> bool:
    (outcome,) = outcomes
    return isinstance(outcome, CompactResult) and outcome.sweeping
