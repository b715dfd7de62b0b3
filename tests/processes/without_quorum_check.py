"""The server without the confirmation of leadership for linearizable reads, which a test must catch.

    python without_quorum_check.py server [flags]

A round of reads counts as confirmed the moment it begins, as if a majority had answered.
"""

from __future__ import annotations

from kvstore.cli.main import main
from raft.core.read_index import ReadRounds, Round
from raft.core.types import ConfState


def take_all(self: ReadRounds, conf: ConfState, member_id: int) -> list[Round]:
    done = list(self.rounds)
    self.rounds.clear()
    self.pending -= sum(len(finished.reads) for finished in done)
    return done


ReadRounds.take_confirmed = take_all  # type: ignore[method-assign]  # the fault under test

if __name__ == "__main__":
    main()
