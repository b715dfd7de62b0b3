"""Everything one member knows; the modules beside it are functions over this.

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
    """What the core needs of a random number generator: `random.Random` fits."""

    def randrange(self, stop: int, /) -> int: ...


_REQUEST_ID_START_MAX = 2**62
"""Request ids begin at a random number below this and count up: an answer addressed to this member's
earlier process can then not be taken for one of its own, and 2**62 further ids still fit 63 bits."""


class State:
    """The raft state of one member. Passive: see `transitions`, `election`, `replication` and the roles."""

    __slots__ = (
        "append_due",
        "commit_broadcast_due",
        "commit_broadcast_wanted",
        "commit_due",
        "conf_superseded",
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
        "pending_conf_index",
        "read_states",
        "reads",
        "responses",
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
        self.conf_superseded = boot.conf
        """Configuration as of the entries applied, valid while a restored snapshot is not yet durable:
        entries handed out before it are still being applied, to a state machine that is behind it."""

        self.election_elapsed = 0
        """Ticks since the leader was heard, a vote was granted or (leader) CheckQuorum last looked."""
        self.election_timeout = config.election_ticks
        """This wait's draw from [election_ticks, 2 * election_ticks); drawn anew at every role change."""
        self.heartbeat_elapsed = 0
        """Leader: ticks since the last heartbeat."""

        self.transferee = NO_NODE
        """Leader: member that is to take over, NO_NODE when none. While set, nothing is proposed."""
        self.pending_conf_index = 0
        """Leader: no membership change may be proposed until `applied` reaches this index. It stands at
        the newest change's index, and at a new leader's last index, where one may hide."""
        self.held_by_all = 0
        """Highest index known durable on every member, as leaders have said. Never decreases: every later
        leader holds those entries too, so no member will request them again."""
        self.uncommitted_bytes = 0
        """Leader: data bytes of entries in (committed, last]."""
        self.append_due = False
        """Leader: some follower may be owed an append; sent when the next Ready is taken, so that
        all that happens in one iteration leaves in one message per follower."""
        self.commit_broadcast_due = False
        """Leader: some follower could raise its commit index, and its commit broadcast was deferred."""
        self.commit_broadcast_wanted = False
        """Leader: deferred commit broadcasts leave with the next Ready."""
        self.commit_due = False
        """A tick has passed: a moved commit index is worth a write of its own. In between it travels
        with the next entries; a commit index on disk is a hint."""

        self.reads = ReadRounds()
        """Leader: reads of all members that wait for confirmation."""
        self.forwarded_reads: dict[int, int] = {}
        """Follower: own request id -> the caller's context, oldest first. Emptied, every context
        reported dropped, whenever the leader they were sent to is no longer followed."""
        self.last_request_id = rng.randrange(_REQUEST_ID_START_MAX)
        """Follower: id of its newest forwarded read; never reused, not even by the next process."""

        self.messages: list[Message] = []
        """Outbox one: may leave at once."""
        self.responses: list[Message] = []
        """Outbox two: votes and acknowledgements, which leave when all earlier append work is durable."""
        self.read_states: list[ReadState] = []
        self.dropped_reads: list[int] = []

    # ------------------------------------------------------------------ asked by every role

    def is_promotable(self) -> bool:
        """Whether this member may stand for election at all."""
        return self.log.snapshot is None and self.tracker.is_voter(self.id)

    def has_own_commit(self) -> bool:
        """Whether an entry of the present term is committed: before that a new leader's commit index may
        lag behind what an earlier leader acknowledged (thesis 6.4)."""
        return self.log.term_at(self.log.committed) == self.term

    # ------------------------------------------------------------------ outboxes

    def send(self, message_type: MessageType, to: int) -> Message:
        """Put a message of the present term into the outbox that leaves at once; the caller may fill it."""
        message = Message(message_type, to, self.id, self.term)
        self.messages.append(message)
        return message

    def respond_after_append(self, message: Message) -> None:
        """Put a response into the outbox that waits for the disk.

        An acknowledgement covers every earlier one to the same leader, so one iteration's become one.
        """
        assert message.to != self.id, "responses to oneself are handled by on_append_done"
        if message.type is MessageType.APPEND_RESPONSE and not message.reject and self.responses:
            last = self.responses[-1]
            if (
                last.type is MessageType.APPEND_RESPONSE
                and not last.reject
                and last.to == message.to
                and last.term == message.term
            ):
                last.index = max(last.index, message.index)
                return
        self.responses.append(message)
