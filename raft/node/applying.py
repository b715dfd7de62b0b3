"""Applying what is committed: in order, each entry once, in slices, completing our own batches.

A slice is bounded in commands and in time, so that a backlog never delays a heartbeat for long.
"""

from __future__ import annotations

from collections import deque

from raft.core.ready import ApplyWork
from raft.core.types import Entry, EntryKind
from raft.node.change_queue import ChangeQueue
from raft.node.envelope import decode_envelope
from raft.node.membership import Membership
from raft.node.node_config import APPLY_SLICE_OPERATIONS_MAX, APPLY_SLICE_S
from raft.node.proposal_queue import ProposalQueue, complete_batch
from raft.node.replica import Replica
from raft.node.state_machine import StateMachine
from raft.storage.storage_protocol import Checkpoint


class Applier:
    def __init__(
        self,
        replica: Replica,
        machine: StateMachine,
        proposals: ProposalQueue,
        changes: ChangeQueue,
        membership: Membership,
        start: Checkpoint,
    ) -> None:
        self._machine = machine
        self._proposals = proposals
        self._changes = changes
        self._membership = membership
        self._member_id = replica.member_id
        self._incarnation = replica.incarnation
        self._clock = replica.loop.time
        self._on_work = replica.core.on_apply_done
        self._works: deque[ApplyWork] = deque()
        """Handed out by the core and not applied to the end; the core bounds the bytes."""
        self._position = 0
        """Entries of `_works[0]` applied so far."""
        self.applied = start.index
        self.applied_term = start.term
        """Index and term of the newest applied entry. Never decrease."""
        self.entries = 0
        self.operations = 0
        self.nbytes = 0
        """Entries, commands and bytes applied since start."""
        self.oldest_unsaved_s: float | None = None
        """When the first entry that no checkpoint includes was applied; `Checkpointer` resets it."""
        self._budget = 0
        """Commands that may still be applied in this loop iteration."""
        self._end_s = 0.0  # when it should stop applying

    def checkpoint(self) -> Checkpoint:
        """The applied index, as the backend records it."""
        return Checkpoint(self.applied, self.applied_term, self._membership.conf)

    def add(self, work: ApplyWork) -> None:
        self._works.append(work)

    def begin_iteration(self) -> None:
        """A new loop iteration has a whole slice to spend."""
        self._budget = APPLY_SLICE_OPERATIONS_MAX
        self._end_s = self._clock() + APPLY_SLICE_S

    def run(self) -> bool:
        """Apply within what is left of the iteration's slice; False when entries are left over."""
        while self._works:
            work = self._works[0]
            entries = work.entries
            while self._position < len(entries):
                if self._budget <= 0 or self._clock() > self._end_s:
                    return False
                self._apply(entries[self._position])
                self._position += 1
            self._works.popleft()
            self._position = 0
            self._on_work(entries[-1].index, work.nbytes)
        return True

    def supersede(self, mark: Checkpoint) -> None:
        """The machine holds the snapshot at `mark` now, which contains what waits to be applied."""
        assert mark.index > self.applied, "a snapshot must hold newer entries"
        self.applied = mark.index
        if mark.term > self.applied_term:
            self.applied_term = mark.term
        works, self._position = list(self._works), 0
        self._works.clear()
        for work in works:
            self._on_work(work.entries[-1].index, work.nbytes)

    def _apply(self, entry: Entry) -> None:
        term, index, kind, data = entry
        assert index == self.applied + 1, "entries are applied in order, each once"
        if term > self.applied_term:
            self.applied_term = term
            self._proposals.term_applied(term)
            self._changes.term_applied(term)
        self.applied = index
        self.entries += 1
        self.nbytes += len(data)
        if self.oldest_unsaved_s is None:
            self.oldest_unsaved_s = self._clock()
        if not data:
            return
        if kind is not EntryKind.NORMAL:
            self._membership.apply(entry)
            return
        member_id, incarnation, counter, commands = decode_envelope(data)
        batch = None
        if incarnation == self._incarnation and member_id == self._member_id:
            batch = self._proposals.applied(counter, self._clock())
        outcomes = self._machine.apply(index, term, commands, batch is not None)
        self.operations += len(commands)
        self._budget -= len(commands)
        if batch is not None:
            complete_batch(batch, outcomes)
