"""The entry point of the package: every input a member can receive, and its one output, a Ready.

Pure: no clock, disk, socket, logger or randomness of its own. Every input is legal in every role; an input
that does not fit the role is ignored, or refused with a reason where a caller waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import raft.core.candidate as candidate
import raft.core.election as election
import raft.core.follower as follower
import raft.core.leader as leader
from raft.core.confchange import ConfChange, apply_change
from raft.core.core_config import BootState, Config
from raft.core.core_errors import DropReason, ProposalDropped
from raft.core.core_status import Status, describe
from raft.core.messages import Message, MessageType
from raft.core.read_index import PendingRead
from raft.core.ready import AppendToken, AppendWork, ApplyWork, Ready
from raft.core.replication import acknowledge_own, flush_appends
from raft.core.state import Rng, State
from raft.core.transitions import become_follower, forget_leader
from raft.core.types import NO_NODE, ConfState, EntryId, HardState, Role, SoftState

Handler = Callable[[State, Message], None]

_T = MessageType

_FOLLOWER: Mapping[MessageType, Handler] = {
    _T.APPEND: follower.on_append,
    _T.HEARTBEAT: follower.on_heartbeat,
    _T.SNAPSHOT: follower.on_snapshot,
    _T.VOTE: election.on_vote_request,
    _T.PRE_VOTE: election.on_vote_request,
    _T.VOTE_RESPONSE: election.learn_commit,
    _T.PRE_VOTE_RESPONSE: election.learn_commit,
    _T.TIMEOUT_NOW: follower.on_timeout_now,
    _T.TRANSFER_LEADER: follower.on_transfer_request,
    _T.READ_INDEX: follower.refuse_read_index,
    _T.READ_INDEX_RESPONSE: follower.on_read_index_response,
}
_CANDIDATE: Mapping[MessageType, Handler] = {
    _T.APPEND: candidate.on_append,
    _T.HEARTBEAT: candidate.on_heartbeat,
    _T.SNAPSHOT: candidate.on_snapshot,
    _T.VOTE: election.on_vote_request,
    _T.PRE_VOTE: election.on_vote_request,
    _T.VOTE_RESPONSE: candidate.on_vote_response,
    _T.PRE_VOTE_RESPONSE: candidate.on_vote_response,
    _T.READ_INDEX: follower.refuse_read_index,
}
_LEADER: Mapping[MessageType, Handler] = {
    _T.APPEND_RESPONSE: leader.on_append_response,
    _T.HEARTBEAT_RESPONSE: leader.on_heartbeat_response,
    _T.VOTE: election.on_vote_request,
    _T.PRE_VOTE: election.on_vote_request,
    _T.TRANSFER_LEADER: leader.on_transfer_request,
    _T.READ_INDEX: leader.on_read_index,
}
_HANDLERS: Mapping[Role, Mapping[MessageType, Handler]] = {
    Role.FOLLOWER: _FOLLOWER,
    Role.PRE_CANDIDATE: _CANDIDATE,
    Role.CANDIDATE: _CANDIDATE,
    Role.LEADER: _LEADER,
}

_FROM_A_LEADER = frozenset((_T.APPEND, _T.HEARTBEAT, _T.SNAPSHOT))


class _Writing(NamedTuple):
    """Append work handed out and not yet reported durable."""

    token: AppendToken
    snapshot_index: int
    """Index of the snapshot it carries, 0 for none."""


class RaftCore:
    """One member. `take_ready` consumes: its caller must execute all of the Ready."""

    __slots__ = ("_applying_bytes", "_role_reported", "_sequence", "_state", "_submitted", "_writing")

    def __init__(self, config: Config, boot: BootState, rng: Rng) -> None:
        """Start as a follower from what was found on disk.

        `rng` is any `random.Random`; it is drawn from at start and at every role change.
        Raises ValueError for a bad config and BootRefused when `boot` contradicts itself.
        """
        self._state = State(config.validate(), boot, rng)
        become_follower(self._state, self._state.term, NO_NODE)
        self._submitted = boot.hard_state
        """The hard state last handed out to be made durable."""
        self._role_reported = SoftState(NO_NODE, Role.FOLLOWER)
        self._sequence = 0
        """Number of the newest AppendWork."""
        self._writing: deque[_Writing] = deque()
        """Oldest first; completes in that order."""
        self._applying_bytes = 0
        """Data bytes of ApplyWork handed out and not reported done."""

    # ------------------------------------------------------------------ state

    @property
    def id(self) -> int:
        return self._state.id

    @property
    def term(self) -> int:
        return self._state.term

    @property
    def role(self) -> Role:
        return self._state.role

    @property
    def leader(self) -> int:
        """The leader of the present term, or NO_NODE."""
        return self._state.leader

    @property
    def commit(self) -> int:
        return self._state.log.committed

    @property
    def applied(self) -> int:
        return self._state.log.applied

    @property
    def last_index(self) -> int:
        return self._state.log.last_index

    @property
    def first_index(self) -> int:
        """Lowest index still held, or the one to come."""
        return self._state.log.first_index

    @property
    def held_by_all(self) -> int:
        """Highest index known durable on every member: compaction up to it forces no snapshot."""
        return self._state.held_by_all

    @property
    def uncommitted_bytes(self) -> int:
        """Leader: data bytes no quorum is known to hold."""
        return self._state.uncommitted_bytes

    @property
    def commit_broadcast_due(self) -> bool:
        """Leader: whether a deferred commit broadcast waits for `broadcast_commit`."""
        return self._state.commit_broadcast_due

    @property
    def conf(self) -> ConfState:
        return self._state.tracker.conf

    def status(self) -> Status:
        """An immutable view for display and tests; takes time linear in the number of members."""
        return describe(self._state)

    # ------------------------------------------------------------------ time and messages

    def tick(self) -> None:
        """One unit of time has passed."""
        s = self._state
        s.commit_due = True
        if s.role is Role.LEADER:
            leader.on_tick(s)
            return
        s.election_elapsed += 1
        if s.election_elapsed >= s.election_timeout and s.is_promotable():
            s.election_elapsed = 0
            election.campaign(s)

    def step(self, message: Message) -> None:
        """Process a message from another member. Types that the role does not handle are ignored."""
        s = self._state
        if message.term != s.term and not self._handle_term_mismatch(message):
            return
        handler = _HANDLERS[s.role].get(message.type)
        if handler is not None:
            handler(s, message)

    def _handle_term_mismatch(self, m: Message) -> bool:
        """Adopt the message's later term, or answer its earlier one; whether to process the message."""
        s = self._state
        if m.term < s.term:
            self._respond_to_earlier_term(m)
            return False
        if m.type in (_T.VOTE, _T.PRE_VOTE):
            if election.is_withheld(s, m):
                return False
            if m.type is _T.PRE_VOTE:
                return True  # names the sender's next term, which has not begun
        elif m.type is _T.PRE_VOTE_RESPONSE and not m.reject:
            return True  # carries the term of the request
        become_follower(s, m.term, m.from_ if m.type in _FROM_A_LEADER else NO_NODE)
        return True

    def _respond_to_earlier_term(self, m: Message) -> None:
        s = self._state
        if m.type in (_T.APPEND, _T.HEARTBEAT):
            # A member whose term ran ahead in a partition is never elected (pre-vote, withheld votes), and
            # its messages are ignored: it can rejoin only if the leader learns of its term.
            if s.config.check_quorum or s.config.pre_vote:
                s.send_after_append(Message(_T.APPEND_RESPONSE, m.from_, s.id, s.term))
        elif m.type is _T.PRE_VOTE or m.type is _T.VOTE:
            # Also a vote (paper, figure 2): without pre-vote, a member that campaigns in an old configuration
            # does not reach those that could win, keeps its term above theirs, and would never vote for them.
            election.refuse(s, m)
        elif m.type is _T.READ_INDEX:
            follower.refuse_read_index(s, m)

    # ------------------------------------------------------------------ requests

    def campaign(self) -> None:
        """Campaign now (with a pre-vote first); no-op on a leader and on a member that is not promotable."""
        election.campaign(self._state)

    def propose(self, datas: Sequence[bytes]) -> list[EntryId]:
        """Append one entry per element; their ids, in order.

        An entry is committed under its id or never: when another entry is applied at that index, or a
        later term's first entry before it, this one is lost. Raises ProposalDropped; then none was made.
        """
        s = self._state
        if s.role is not Role.LEADER:
            raise ProposalDropped(DropReason.NOT_LEADER, s.leader)
        if not datas:
            return []
        first = leader.propose(s, datas)
        return [EntryId(s.term, index) for index in range(first, first + len(datas))]

    def propose_conf(self, change: ConfChange) -> EntryId:
        """Append a membership change. Raises ProposalDropped, with CONF_PENDING while an earlier change
        may be unapplied and CONF_INVALID when the change does not fit the active configuration."""
        s = self._state
        if s.role is not Role.LEADER:
            raise ProposalDropped(DropReason.NOT_LEADER, s.leader)
        return EntryId(s.term, leader.propose_conf(s, change))

    def hasten_commit_broadcast(self, members: Iterable[int]) -> None:
        """Clients of these members wait for the entries just proposed: send their commit without deferral."""
        for member in members:
            progress = self._state.tracker.progress.get(member)
            if progress is not None:
                progress.awaited_commit = self._state.log.last_index

    def broadcast_commit(self) -> None:
        """Send the commit index to every follower that no append has sent it to meanwhile."""
        s = self._state
        if s.role is Role.LEADER and s.commit_broadcast_due:
            s.commit_broadcast_requested = s.append_due = True

    def read_index(self, context: int) -> None:
        """Request an index: once it is applied, a local read is linearizable.

        The result comes as `Ready.read_states`, or the context in `Ready.dropped_reads`; a read forwarded to
        the leader may also be lost, so the caller needs a timeout. The leader confirms its leadership after
        this call, never before.
        """
        s = self._state
        if s.role is Role.LEADER:
            leader.add_read(s, PendingRead(s.id, context))
        else:
            follower.read_index(s, context)

    def transfer_leader(self, to: int) -> None:
        """Transfer leadership to the voter `to`; forwarded to the leader, ignored where impossible. During
        the transfer, at most an election timeout, the leader refuses proposals."""
        s = self._state
        if s.role is Role.LEADER:
            leader.transfer_leader(s, to)
        else:
            follower.transfer_leader(s, to)

    def forget_leader(self) -> None:
        """The caller knows the leader is dead: stop withholding votes from other candidates. Changes neither
        term nor timer; no-op on a leader."""
        s = self._state
        if s.role is not Role.LEADER:
            forget_leader(s)

    # ------------------------------------------------------------------ reports

    def report_unreachable(self, member: int) -> None:
        """A message to the member was lost: a leader probes it."""
        if self._state.role is Role.LEADER:
            leader.report_unreachable(self._state, member)

    def report_restarted(self, member: int) -> None:
        """The member restarted: a leader discards what it acknowledged before."""
        if self._state.role is Role.LEADER:
            leader.report_restarted(self._state, member)

    def report_snapshot(self, member: int, ok: bool) -> None:
        """The snapshot requested by a SNAPSHOT message was delivered, or failed."""
        if self._state.role is Role.LEADER:
            leader.report_snapshot(self._state, member, ok=ok)

    def on_append_done(self, token: AppendToken) -> None:
        """Append work `token`, and all before it, is durable (and, if it carried a snapshot, the state
        machine is restored from it)."""
        s = self._state
        assert self._writing, f"nothing is being written, yet {token} is done"
        assert self._writing[0].token.sequence <= token.sequence <= self._sequence, f"{token} done twice"
        while self._writing and self._writing[0].token.sequence <= token.sequence:
            done, snapshot_index = self._writing.popleft()
            if snapshot_index:
                s.log.snapshot_durable(snapshot_index)  # committed, whatever the term is by now
            if done.term == s.term:
                self._on_durable(done)

    def _on_durable(self, token: AppendToken) -> None:
        """Count what is durable, but only for work of the present term: after a change of term the same
        (index, term) may have been overwritten and be about to be written again. The change itself made
        append work that names the last entry again, so no completion is missed for long."""
        s = self._state
        s.log.stable_to(token.last_index, token.last_term)
        if s.role is Role.LEADER:
            acknowledge_own(s)
        elif s.role is Role.CANDIDATE:
            election.count_own_vote(s)

    def on_apply_done(self, index: int, nbytes: int) -> None:
        """Apply work of `nbytes`, ending at `index`, is applied."""
        s = self._state
        self._applying_bytes -= nbytes
        assert self._applying_bytes >= 0, "more applied than was handed out"
        s.log.applied_to(index)
        if s.role is Role.LEADER:
            leader.leave_joint_if_due(s)

    def apply_conf(self, change: ConfChange) -> ConfState:
        """Make a committed membership change effective, in log order, before `on_apply_done` of its entry;
        the new configuration. Raises ConfChangeRefused for a change that does not fit, which only a log
        written under other rules can hold; the configuration is then unchanged."""
        s = self._state
        if s.log.snapshot is not None:
            # The active configuration is that of the snapshot, which holds this change already.
            s.applied_conf = apply_change(s.applied_conf, change)
            return s.applied_conf
        conf = apply_change(s.tracker.conf, change)
        # New members are probed at the last entry: their rejection names what they hold.
        s.tracker.adopt(conf, max(s.log.last_index, 1))
        if s.role is Role.LEADER:
            leader.adopt_conf(s)
        return conf

    @property
    def restoring(self) -> int:
        """Index of the snapshot that is to replace the log and is not yet reported durable; 0 for none."""
        snapshot = self._state.log.snapshot
        return 0 if snapshot is None else snapshot.index

    def compact(self, index: int) -> None:
        """Drop log entries up to `index`, which must be applied and in the state machine's durable state."""
        self._state.log.compact(index)

    # ------------------------------------------------------------------ output

    def has_ready(self) -> bool:
        """Whether `take_ready` would return anything; cheap enough to ask after every input."""
        s = self._state
        return bool(
            s.messages
            or s.messages_after_append
            or s.append_due
            or s.log.has_unsubmitted()
            or self._can_apply()
            or s.read_states
            or s.dropped_reads
            or self._hard_state_due()
            or self._role_reported != (s.leader, s.role)
            or self._can_begin_read_round()
        )

    def take_ready(self) -> Ready:
        """Everything the core wants done since the last take. Must be executed, in the order of takes:
        `messages` at once, `append` through the log with its responses after, `apply` in any spare time."""
        s = self._state
        if s.role is Role.LEADER:
            if self._can_begin_read_round():
                leader.begin_read_round(s)
            if s.append_due:
                flush_appends(s)
        ready = Ready(s.messages, self._take_append(), self._take_apply())
        s.messages = []
        s.commit_due = False
        if self._role_reported != (s.leader, s.role):
            ready.soft_state = self._role_reported = SoftState(s.leader, s.role)
        if s.read_states:
            ready.read_states, s.read_states = s.read_states, []
        if s.dropped_reads:
            ready.dropped_reads, s.dropped_reads = s.dropped_reads, []
        return ready

    def _can_begin_read_round(self) -> bool:
        s = self._state
        return bool(s.reads.waiting) and s.reads.can_begin() and s.has_own_commit()

    def _can_apply(self) -> bool:
        return (
            self._applying_bytes < self._state.config.applying_bytes_max and self._state.log.has_applicable()
        )

    def _hard_state_due(self) -> bool:
        """Whether the hard state needs a write even if nothing else does."""
        s, submitted = self._state, self._submitted
        if s.term != submitted.term or s.vote != submitted.vote:
            return True
        return s.commit_due and s.log.committed != submitted.commit

    def _take_append(self) -> AppendWork | None:
        s = self._state
        if not (s.messages_after_append or s.log.has_unsubmitted() or self._hard_state_due()):
            return None
        hard_state = HardState(s.term, s.vote, s.log.committed)
        term_or_vote_changed = hard_state[:2] != self._submitted[:2]
        entries, snapshot = s.log.take_unsubmitted()
        self._sequence += 1
        token = AppendToken(s.term, self._sequence, s.log.last_index, s.log.last_term)
        work = AppendWork(
            token,
            entries,
            hard_state if hard_state != self._submitted else None,
            snapshot,
            must_sync=bool(entries) or snapshot is not None or term_or_vote_changed,
            responses=s.messages_after_append,
        )
        s.messages_after_append = []
        self._submitted = hard_state
        self._writing.append(_Writing(token, snapshot.index if snapshot is not None else 0))
        return work

    def _take_apply(self) -> ApplyWork | None:
        if not self._can_apply():
            return None
        s = self._state
        space = s.config.applying_bytes_max - self._applying_bytes
        entries = s.log.take_applicable(min(space, s.config.apply_bytes_max))
        nbytes = sum([len(entry.data) for entry in entries])
        self._applying_bytes += nbytes
        return ApplyWork(entries, nbytes)
