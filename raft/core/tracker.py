"""The active configuration, with the progress of each member and the votes of the present election."""

from __future__ import annotations

from raft.core.confchange import check_conf, is_voter, members_of
from raft.core.core_config import Config
from raft.core.progress import Progress, new_progress
from raft.core.quorum import VoteResult, joint_committed, joint_vote
from raft.core.types import ConfState


class Tracker:
    """The active configuration: that of the last applied change, or of the snapshot."""

    __slots__ = ("_config", "conf", "progress", "votes")

    def __init__(self, config: Config, conf: ConfState, next_index: int) -> None:
        self._config = config
        self.conf = ConfState()
        self.progress: dict[int, Progress] = {}
        """One per member, self included, in ascending order of id. Meaningful on a leader only."""
        self.votes: dict[int, bool] = {}
        """Votes of this election by member; the first response of each counts."""
        self.adopt(conf, next_index)

    def adopt(self, conf: ConfState, next_index: int) -> None:
        """Switch to `conf`. Members that stay keep their progress; new ones are probed at `next_index`."""
        check_conf(conf)
        self.conf = conf
        before = self.progress
        self.progress = {}
        for member in members_of(conf):
            is_learner = member in conf.learners
            progress = before.get(member)
            if progress is None:
                progress = new_progress(
                    next_index=next_index,
                    is_learner=is_learner,
                    messages_max=self._config.inflight_messages_max,
                    nbytes_max=self._config.inflight_bytes_max,
                )
                # A new member has a full interval before CheckQuorum may count it as inactive.
                progress.recent_active = True
            progress.is_learner = is_learner
            self.progress[member] = progress

    def is_voter(self, member: int) -> bool:
        return is_voter(self.conf, member)

    def voters(self) -> tuple[int, ...]:
        """Voters of both halves, sorted."""
        return tuple(member for member, progress in self.progress.items() if not progress.is_learner)

    def committed(self) -> int:
        """Highest index a quorum holds durably, as far as is known."""
        matches = {member: progress.match for member, progress in self.progress.items()}
        return joint_committed(self.conf.voters, self.conf.voters_outgoing, matches)

    def record_vote(self, member: int, granted: bool) -> VoteResult:
        """Count one vote; a repeated one changes nothing."""
        self.votes.setdefault(member, granted)
        return joint_vote(self.conf.voters, self.conf.voters_outgoing, self.votes)

    def quorum_active(self, member_id: int) -> bool:
        """CheckQuorum: whether a quorum, self included, was active since the last call; then starts anew."""
        active = {}
        for member, progress in self.progress.items():
            active[member] = progress.recent_active or member == member_id
            progress.recent_active = member == member_id
        return joint_vote(self.conf.voters, self.conf.voters_outgoing, active) is VoteResult.WON
