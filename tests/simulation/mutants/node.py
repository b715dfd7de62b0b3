"""Planted bugs of the driver, `raft.node`: whole members are run to find them."""

from __future__ import annotations

from typing import Any

from raft.node.applying import Applier
from raft.node.forwarding import Forwarding
from raft.node.identity_check import IdentityCheck
from raft.node.proposals import Proposals
from raft.node.reads import Reads
from tests.simulation.mutants.mutant import Mutant
from tests.simulation.mutants.patches import Patches


def _reads_do_not_wait_for_apply(p: Patches) -> None:
    confirmed = Reads.confirmed

    def hasty(self: Reads, context: int, index: int, applied: int, now_s: float) -> None:
        confirmed(self, context, min(index, applied), applied, now_s)

    p.attribute(Reads, "confirmed", hasty)


def _leader_takes_a_batch_again(p: Patches) -> None:
    on_batch = Forwarding.on_batch

    def forgetful(self: Forwarding, member_id: int, batch: Any, leading_term: int) -> Any:
        window = self._windows.get((member_id, batch.incarnation))
        if window is not None and leading_term == batch.term:
            window.next = batch.counter
        return on_batch(self, member_id, batch, leading_term)

    p.attribute(Forwarding, "on_batch", forgetful)


def _sent_to_the_next_leader_at_once(p: Patches) -> None:
    open_window = Proposals.open_window

    def impatient(self: Proposals, term: int, leader: int, leader_incarnation: int) -> bool:
        if (term, leader, leader_incarnation) != self._window:
            while self._flight:
                self._put_back(self._flight.pop())
        return open_window(self, term, leader, leader_incarnation)

    p.attribute(Proposals, "open_window", impatient)


def _ids_used_again(p: Patches) -> None:
    """A restarted member numbers its batches under the name its last process used."""
    proposals, applier = Proposals.__init__, Applier.__init__

    def named(self: Proposals, config: Any, incarnation: int) -> None:
        proposals(self, config, config.member_id)

    def completing(self: Applier, **arguments: Any) -> None:
        applier(self, **{**arguments, "incarnation": arguments["member_id"]})

    p.attribute(Proposals, "__init__", named)
    p.attribute(Applier, "__init__", completing)


def _fresh_disk_votes(p: Patches) -> None:
    judge = IdentityCheck.__init__

    def trusting(self: IdentityCheck, **arguments: Any) -> None:
        judge(self, **arguments)
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
        "proposal forwarded again without the fate rule",
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
    Mutant(65, "fresh disk votes as its old self", _fresh_disk_votes, level="node", classes=("wipe",)),
)
