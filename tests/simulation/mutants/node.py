"""Mutants of the node, `raft.node`: whole members are run to catch them."""

from __future__ import annotations

from typing import Any

from raft.node.applying import Applier
from raft.node.forwarding_sessions import ForwardingSessions
from raft.node.identity_check import IdentityCheck
from raft.node.proposal_queue import ProposalQueue
from raft.node.reads import Reads
from tests.simulation.mutants.mutant import Mutant
from tests.simulation.mutants.patches import Patches


def _reads_do_not_wait_for_apply(p: Patches) -> None:
    confirmed = Reads.confirmed

    def hasty(self: Reads, context: int, index: int, applied: int, now_s: float) -> None:
        confirmed(self, context, min(index, applied), applied, now_s)

    p.attribute(Reads, "confirmed", hasty)


def _leader_takes_a_batch_again(p: Patches) -> None:
    on_batch = ForwardingSessions.on_batch

    def forgetful(self: ForwardingSessions, member_id: int, batch: Any, leading_term: int) -> Any:
        session = self._sessions.get((member_id, batch.incarnation))
        if session is not None and leading_term == batch.term:
            session.next = batch.counter
        return on_batch(self, member_id, batch, leading_term)

    p.attribute(ForwardingSessions, "on_batch", forgetful)


def _sent_to_the_next_leader_at_once(p: Patches) -> None:
    open_session = ProposalQueue.open_session

    def impatient(self: ProposalQueue, term: int, leader: int, leader_incarnation: int) -> bool:
        if (term, leader, leader_incarnation) != self._session:
            while self._flight:
                self._put_back(self._flight.pop())
        return open_session(self, term, leader, leader_incarnation)

    p.attribute(ProposalQueue, "open_session", impatient)


def _ids_used_again(p: Patches) -> None:
    """A restarted member numbers its batches under the incarnation of its last process."""
    proposals, applier = ProposalQueue.__init__, Applier.__init__

    def named(self: ProposalQueue, config: Any, incarnation: int) -> None:
        proposals(self, config, config.member_id)

    def completing(self: Applier, *arguments: Any) -> None:
        applier(self, *arguments)
        self._incarnation = self._member_id

    p.attribute(ProposalQueue, "__init__", named)
    p.attribute(Applier, "__init__", completing)


def _new_disk_votes(p: Patches) -> None:
    check = IdentityCheck.__init__

    def trusting(self: IdentityCheck, *arguments: Any) -> None:
        check(self, *arguments)
        if not self.vote_eligible:
            self._become_vote_eligible()

    p.attribute(IdentityCheck, "__init__", trusting)


MUTANTS = (
    Mutant(
        47,
        "read served at the commit index, not waiting for apply",
        _reads_do_not_wait_for_apply,
        level="node",
    ),
    Mutant(
        48,
        "proposal retried after a leader change without dedup",
        _leader_takes_a_batch_again,
        level="node",
        classes=("reset", "delay", "slow-disk"),
    ),
    Mutant(
        61,
        "proposal forwarded again without the outcome rule",
        _sent_to_the_next_leader_at_once,
        level="node",
        classes=("crash", "delay", "slow-disk"),
    ),
    Mutant(
        62,
        "ids used again after a restart",
        _ids_used_again,
        level="node",
        classes=("crash", "delay", "slow-disk"),
    ),
    Mutant(65, "new disk votes as its old self", _new_disk_votes, level="node", classes=("wipe",)),
)
