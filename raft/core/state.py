"""The whole state of one member; the modules beside it are functions over this.

Nothing here decides. Every field says what it means and when it is valid.
"""

from __future__ import annotations

from typing import Protocol

from raft.core.core_config import BootState, Config
from raft.core.core_errors import BootRefused
from raft.core.log import Log
from raft.core.messages import Message, MessageType
from raft.core.read_index import ReadRounds
from raft.core.ready import ReadState
from raft.core.tracker import Tracker
from raft.core.types import NO_NODE, Role


class Rng(Protocol):
    """The randomness that the core needs: `random.Random` fits."""

    def randrange(self, stop: int, /) -> int: ...


_REQUEST_ID_START_MAX = 2**62
"""Request ids begin at a random number below this and count up, so that no response meant for an earlier
incarnation of this member matches one of its requests; 2**62 further ids still fit 63 bits."""


class State:
    """The raft state of one member. Passive: see `transitions`, `election`, `replication` and the roles."""

    __slots__ = (
        "append_due",
        "applied_conf",
        "commit_broadcast_due",
        "commit_broadcast_requested",
        "commit_due",
        "config",
        "dropped_reads",
        "election_elapsed",
        "election_timeout",
        "forwarded_reads",
        "heartbeat_elapsed",
        "held_by_all",
        "id",
        "last_request_id",
        "leader",
        "log",
        "messages",
        "messages_after_append",
        "pending_conf_index",
        "read_states",
        "reads",
        "rng",
        "role",
        "term",
        "tracker",
        "transferee",
        "uncommitted_bytes",
        "vote",
    )

    def __init__(self, config: Config, boot: BootState, rng: Rng) -> None:
        hard = boot.hard_state
        self.config = config
        self.rng = rng
        self.id = config.member_id
        self.term = hard.term
        """Latest term seen. Never decreases."""
        self.vote = hard.vote
        """Member voted for in `term`, or NO_NODE. Set at most once per term."""
        self.role = Role.FOLLOWER
        self.leader = NO_NODE
        """Leader of `term`, or NO_NODE while unknown. Own id exactly when `role` is LEADER."""
        # The log may know of more commits than the hard state: the commit index is written lazily.
        committed = max(hard.commit, boot.applied, boot.snapshot.index)
        self.log = Log(boot.snapshot, boot.entries, committed, boot.applied)
        if self.log.last_term > hard.term:
            raise BootRefused(f"entries of term {self.log.last_term} beyond the hard state's {hard.term}")
        self.tracker = Tracker(config, boot.conf, self.log.last_index + 1)
        self.applied_conf = boot.conf
        """Configuration as of the applied index, valid while a restored snapshot is not yet durable:
        entries handed out before it are still being applied, to a state machine that is behind it."""

        self.election_elapsed = 0
        """Ticks since the leader was heard, a vote was granted or (leader) CheckQuorum last looked."""
        self.election_timeout = config.election_ticks
        """Random in [election_ticks, 2 * election_ticks); drawn again at every role change."""
        self.heartbeat_elapsed = 0
        """Leader: ticks since the last heartbeat."""

        self.transferee = NO_NODE
        """Leader: target of the transfer in progress, or NO_NODE. While set, proposals are refused."""
        self.pending_conf_index = 0
        """Leader: no membership change may be proposed until `applied` reaches this index: the
        index of the newest change, or on a new leader its last index, since the tail may hold one."""
        self.held_by_all = 0
        """Highest index known durable on every member, from heartbeats. Never decreases: every later leader
        holds those entries too, so no member will need them again."""
        self.uncommitted_bytes = 0
        """Leader: data bytes of entries in (committed, last]."""
        self.append_due = False
        """Leader: an append may be due to some follower. Sent when the next Ready is taken, so that all
        inputs of one loop iteration share one message per follower."""
        self.commit_broadcast_due = False
        """Leader: some follower could raise its commit index, but its commit broadcast was deferred."""
        self.commit_broadcast_requested = False
        """Leader: deferred commit broadcasts leave with the next Ready."""
        self.commit_due = False
        """A tick has passed: write a changed commit index by itself. Between ticks it is written with the
        next entries only; a commit index on disk is a hint."""

        self.reads = ReadRounds()
        """Leader: reads of all members that wait for a confirmed round."""
        self.forwarded_reads: dict[int, int] = {}
        """Follower: own request id -> the caller's context, oldest first. Emptied, every context
        reported dropped, whenever the leader they were sent to is no longer followed."""
        self.last_request_id = rng.randrange(_REQUEST_ID_START_MAX)
        """Follower: id of its newest forwarded read; never reused, not even by its next incarnation."""

        self.messages: list[Message] = []
        """May be sent at once."""
        self.messages_after_append: list[Message] = []
        """Votes and acknowledgements, to be sent once all state handed out before them is durable."""
        self.read_states: list[ReadState] = []
        self.dropped_reads: list[int] = []

    # ------------------------------------------------------------------ used in every role

    def is_promotable(self) -> bool:
        """Whether this member may campaign: a voter that is not restoring a snapshot."""
        return self.log.snapshot is None and self.tracker.is_voter(self.id)

    def has_own_commit(self) -> bool:
        """Whether an entry of the present term is committed: before that a new leader's commit index may
        lag behind what an earlier leader acknowledged (thesis 6.4)."""
        return self.log.term_at(self.log.committed) == self.term

    # ------------------------------------------------------------------ outboxes

    def send(self, message_type: MessageType, to: int) -> Message:
        """Queue a message of the present term, to be sent at once; the caller may fill it."""
        message = Message(message_type, to, self.id, self.term)
        self.messages.append(message)
        return message

    def send_after_append(self, message: Message) -> None:
        """Queue a response, to be sent once the append work that takes it is durable.

        An acknowledgement covers every earlier one to the same leader, so consecutive ones are merged.
        """
        assert message.to != self.id, "on_append_done counts the member's own vote and acknowledgement"
        if message.type is MessageType.APPEND_RESPONSE and not message.reject and self.messages_after_append:
            last = self.messages_after_append[-1]
            if (
                last.type is MessageType.APPEND_RESPONSE
                and not last.reject
                and last.to == message.to
                and last.term == message.term
            ):
                last.index = max(last.index, message.index)
                return
        self.messages_after_append.append(message)
