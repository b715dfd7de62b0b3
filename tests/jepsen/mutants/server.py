"""The server as a mutant with one bug: what a test against real processes must find.

    python server.py BUG server [flags]

* `skips-sync`: syncs of the log do nothing;
* `reads-without-quorum`: a round of reads counts as confirmed the moment it begins;
* `forgets-votes`: every candidate gets the vote, as if none had been given in this term;
* `dead-lease`: a waiter is granted the lock without a check that its own key still exists.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from kvstore.cli.main import main
from kvstore.errors import KVError
from kvstore.lease.lock_queue import Waiter
from raft.core import raft_core
from raft.core.election import on_vote_request
from raft.core.messages import Message, MessageType
from raft.core.read_index import ReadRounds, Round
from raft.core.state import State
from raft.core.types import NO_NODE, ConfState
from raft.storage.files import RealFile, RealFiles


def skip_sync() -> None:
    def nothing(*_: Any) -> None:
        """As if the disk had synced."""

    RealFile.datasync = RealFile.sync = nothing  # type: ignore[method-assign]  # the bug
    RealFiles.sync_directory = nothing  # type: ignore[method-assign]  # the bug


def read_without_quorum() -> None:
    def take_all(self: ReadRounds, conf: ConfState, member_id: int) -> list[Round]:
        done = list(self.rounds)
        self.rounds.clear()
        self.pending -= sum(len(finished.reads) for finished in done)
        return done

    ReadRounds.take_confirmed = take_all  # type: ignore[method-assign]  # the bug


def forget_votes() -> None:
    def forgetful(s: State, m: Message) -> None:
        if m.type is MessageType.VOTE:
            s.vote = NO_NODE
        on_vote_request(s, m)

    for table in (raft_core._FOLLOWER, raft_core._CANDIDATE, raft_core._LEADER):
        for key in [key for key, handler in table.items() if handler is on_vote_request]:
            table[key] = forgetful


def grant_to_dead_leases() -> None:
    def confirmed(self: Waiter, error: KVError | None) -> None:
        if self._on_result is None:
            return
        self._complete(error if error is not None else self._held(self._replica.engine.revision))

    Waiter._confirmed = confirmed  # type: ignore[method-assign]  # the bug


BUGS: dict[str, Callable[[], None]] = {
    "skips-sync": skip_sync,
    "reads-without-quorum": read_without_quorum,
    "forgets-votes": forget_votes,
    "dead-lease": grant_to_dead_leases,
}

if __name__ == "__main__":
    BUGS[sys.argv.pop(1)]()
    main()
