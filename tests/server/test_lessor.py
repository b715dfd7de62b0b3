"""The lessor on a node that the test plays: when a keep-alive is acknowledged, and when not."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest

from kvstore.engine import LEASE_CHECKPOINTS_MAX, Engine, LeaseGrant, LeaseRevoke, Put, encode
from kvstore.errors import KVError, LeaseTtlTooLarge, TooManyRequests
from kvstore.lease.lessor import (
    EXPIRIES_PER_SCAN_MAX,
    HELD_PER_LEASE_MAX,
    LEASE_TTL_SECONDS_MAX,
    WAITING_MAX,
    Lessor,
    TimeLeft,
)
from kvstore.replica.replica import Limits
from kvstore.server.local_member import LocalMember
from kvstore.testing import run_virtual
from raft.core.types import Role
from raft.node import NodeError, NodeEvent, NoLeader, OutcomeUnknown


class EngineHost:
    """A leader whose rounds and commits happen when the test says so."""

    member_id = 1

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.term = 1
        self.leader = self.member_id
        self.index = 0
        self.rounds: list[Callable[[NodeError | None], None]] = []
        self.proposed: list[tuple[bytes, Callable[[object, NodeError | None], None]]] = []
        self.hold = False
        """Whether proposals wait for `commit`."""
        self.listeners: list[Callable[[NodeEvent], None]] = []
        self.asked: list[bytes] = []
        self.remote = False
        """Leader RPCs go to another member and stay there."""

    def subscribe(self, listener) -> None:
        self.listeners.append(listener)

    def answer_with(self, answerer) -> None:
        self.answerer = answerer

    def call_leader(self, data, on_result) -> None:
        self.asked.append(data)
        self.complete_leader_call = on_result
        if not self.remote:
            self.answerer(data, lambda answered: on_result(answered, None))

    def read_barrier(self, on_result) -> None:
        self.rounds.append(on_result)

    def propose(self, command, on_result) -> None:
        self.proposed.append((command, on_result))
        if not self.hold:
            self.commit()

    def commit(self, error: NodeError | None = None, lost: bool = False) -> None:
        pending, self.proposed = self.proposed, []
        for command, on_result in pending:
            outcome: object = None
            if not lost:
                self.index += 1
                (outcome,) = self.engine.apply(self.index, self.term, [command], True)
            on_result(None if error else outcome, error)

    def confirm(self) -> None:
        pending, self.rounds = self.rounds, []
        for on_result in pending:
            on_result(None)

    def becomes(self, term: int, leader: int) -> None:
        self.term, self.leader = term, leader
        role = Role.LEADER if leader == self.member_id else Role.FOLLOWER
        for listener in self.listeners:
            listener(NodeEvent(term, leader, role))


class Scene:
    def __init__(self) -> None:
        self.engine = Engine()
        self.host = EngineHost(self.engine)
        self.member = LocalMember(
            node=self.host,
            engine=self.engine,
            cluster_id=1,
            member_id=1,
            limits=Limits(request_bytes_max=1 << 20, txn_operations_max=128),
            quota_bytes=None,
        )
        self.lessor: Lessor = self.member.lessor
        self.loop = asyncio.get_running_loop()
        self.lessor.start(loop=self.loop, rng=random.Random(1), election_timeout_ms=1000)
        self.host.becomes(1, 1)
        self.told: list[TimeLeft | KVError] = []

    def apply(self, *commands) -> None:
        for command in commands:
            self.host.index += 1
            self.engine.apply(self.host.index, self.host.term, [encode(command)], False)

    async def keep_alive(self, lease: int) -> None:
        self.lessor.keep_alive(lease, self.told.append)
        await asyncio.sleep(0)
        await asyncio.sleep(0)


def scene(play):
    """A test that plays in virtual time."""

    def run() -> None:
        async def main() -> None:
            made = Scene()
            try:
                await play(made)
            finally:
                made.lessor.stop()

        run_virtual(main())

    run.__name__ = play.__name__
    run.__doc__ = play.__doc__
    return run


async def _keep_alive_waits_for_a_round(made: Scene) -> None:
    made.apply(LeaseGrant(7, 10))
    await made.keep_alive(7)
    assert made.told == [], "no round has confirmed that this member leads"
    made.host.confirm()
    assert made.told == [TimeLeft(10, 10_000)]
    await made.keep_alive(8)
    made.host.confirm()
    assert made.told[1:] == [TimeLeft(0, 0)]


async def _waiting_keep_alives_share_a_leader_call(made: Scene) -> None:
    made.apply(LeaseGrant(7, 10), LeaseGrant(8, 20))
    for lease in (7, 8, 9):
        made.lessor.keep_alive(lease, made.told.append)
    await asyncio.sleep(0.001)
    assert len(made.host.rounds) == len(made.host.asked) == 1
    made.host.confirm()
    assert [left.granted_seconds for left in made.told] == [10, 20, 0]


async def _deposed_leader_acknowledges_nothing(made: Scene) -> None:
    made.apply(LeaseGrant(7, 10))
    await made.keep_alive(7)
    made.host.becomes(2, 2)
    made.host.confirm()
    assert made.told == []
    made.host.becomes(3, 1)
    made.host.confirm()
    assert made.told == [], "that round belonged to an earlier leadership"


async def _keep_alive_waits_for_an_expiry_in_flight(made: Scene) -> None:
    made.apply(LeaseGrant(7, 2), Put(b"a", lease=7))
    made.host.hold = True
    await asyncio.sleep(2.6)
    assert len(made.host.proposed) == 1
    await made.keep_alive(7)
    made.host.confirm()
    assert made.told == [], "the end may still take effect"
    made.host.commit()
    assert made.told == [TimeLeft(0, 0)]
    assert made.engine.key_count == 0


async def _only_the_latest_keep_alives_wait_for_an_end(made: Scene) -> None:
    made.apply(LeaseGrant(7, 2))
    made.host.hold = True
    await asyncio.sleep(2.6)
    for _ in range(HELD_PER_LEASE_MAX + 3):
        await made.keep_alive(7)
        made.host.confirm()
    made.host.commit()
    assert made.told == [TimeLeft(0, 0)] * HELD_PER_LEASE_MAX


async def _answered_keep_alives_make_space(made: Scene) -> None:
    made.apply(LeaseGrant(7, 10))
    made.lessor._waiting_count = WAITING_MAX - 1
    await made.keep_alive(7)
    await made.keep_alive(7)
    assert [type(told) for told in made.told] == [TooManyRequests]
    made.host.confirm()
    await made.keep_alive(7)
    made.host.confirm()
    assert [type(told) for told in made.told] == [TooManyRequests, TimeLeft, TimeLeft]


async def _unknown_end_is_proposed_again(made: Scene) -> None:
    made.apply(LeaseGrant(7, 2))
    made.host.hold = True
    await asyncio.sleep(2.6)
    made.host.commit(OutcomeUnknown("?"), lost=True)
    await made.keep_alive(7)
    made.host.confirm()
    assert made.told == []
    await asyncio.sleep(0.3)
    made.host.commit()
    assert made.told == [TimeLeft(0, 0)]
    assert made.engine.leases.ids() == []


async def _late_end_of_an_earlier_grant_decides_nothing(made: Scene) -> None:
    """Revoked and granted anew while its end was on its way, and ended again."""
    made.apply(LeaseGrant(7, 2))
    made.host.hold = True
    await asyncio.sleep(2.6)
    made.apply(LeaseRevoke(7), LeaseGrant(7, 2))
    earlier, made.host.proposed = made.host.proposed, []
    await asyncio.sleep(2.6)
    assert (len(earlier), len(made.host.proposed)) == (1, 1)
    await made.keep_alive(7)
    made.host.confirm()
    made.host.proposed, later = earlier, made.host.proposed
    made.host.commit(OutcomeUnknown("?"), lost=True)
    assert made.told == []
    made.host.proposed = later
    made.host.commit()
    assert made.told == [TimeLeft(0, 0)]


async def _end_of_a_lost_term_is_forgotten(made: Scene) -> None:
    made.apply(LeaseGrant(7, 2))
    made.host.hold = True
    await asyncio.sleep(2.6)
    made.host.becomes(2, 2)
    made.host.commit()
    assert made.engine.leases.ids() == [7], "late: the entry has another term"
    made.host.becomes(3, 1)
    await asyncio.sleep(1.9)
    made.host.commit()
    assert made.engine.leases.ids() == [7], "a new leadership grants the full time"
    await asyncio.sleep(0.6)
    made.host.commit()
    assert made.engine.leases.ids() == []


async def _mass_expiry_is_spread(made: Scene) -> None:
    count = 3 * EXPIRIES_PER_SCAN_MAX
    made.apply(*(LeaseGrant(lease, 2) for lease in range(1, count + 1)))
    left = []
    for _ in range(14):
        await asyncio.sleep(0.25)
        left.append(len(made.engine.leases))
    falls = [before - after for before, after in zip([count, *left], left, strict=False)]
    assert left[-1] == 0
    assert max(falls) == EXPIRIES_PER_SCAN_MAX
    assert made.engine.leases.expired == count


async def _followers_pass_on_what_waits(made: Scene) -> None:
    made.host.remote = True
    made.host.becomes(2, 2)
    made.lessor.keep_alive(7, made.told.append)
    made.lessor.keep_alive(8, made.told.append)
    made.lessor.time_left(7, made.told.append)
    await asyncio.sleep(0.001)
    assert len(made.host.asked) == 2
    made.host.complete_leader_call(b"", NoLeader("no leader"))
    assert isinstance(made.told[0], KVError)
    assert made.told[0].text == "etcdserver: request timed out"


async def _ids_are_chosen_and_short_times_lengthened(made: Scene) -> None:
    granted: list = []
    made.lessor.grant(0, 0, granted.append)
    made.lessor.grant(0, -5, granted.append)
    made.lessor.grant(12, 100, granted.append)
    made.lessor.grant(-3, LEASE_TTL_SECONDS_MAX, granted.append)
    assert [each.ttl_seconds for each in granted] == [2, 2, 100, LEASE_TTL_SECONDS_MAX]
    assert 0 < granted[0].id < 2**63
    assert granted[0].id != granted[1].id
    assert [each.id for each in granted[2:]] == [12, -3]
    with pytest.raises(LeaseTtlTooLarge):
        made.lessor.grant(0, LEASE_TTL_SECONDS_MAX + 1, granted.append)


async def _time_left_counts_down(made: Scene) -> None:
    made.apply(LeaseGrant(7, 10))
    assert made.lessor.leases() == [7]
    await asyncio.sleep(3.25)
    made.lessor.time_left(7, made.told.append)
    made.lessor.time_left(8, made.told.append)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    made.host.confirm()
    assert made.told == [TimeLeft(10, 6750), TimeLeft(0, 0)]
    made.apply(LeaseGrant(3, 2), LeaseRevoke(7), LeaseGrant(4, 1))
    assert made.lessor.leases() == [4, 3], "by what is left"


async def _checkpoint_shortens_the_next_leaders_start_until_a_keep_alive(made: Scene) -> None:
    made.lessor._clock.checkpoints = True
    made.apply(LeaseGrant(7, 1000), LeaseGrant(8, 200))
    await asyncio.sleep(301)
    lease = made.engine.leases.find(7)
    assert lease is not None
    assert lease.remaining_seconds == 701, "rounded up"
    made.host.becomes(2, 2)
    made.host.becomes(3, 1)
    made.lessor.time_left(7, made.told.append)
    await asyncio.sleep(0.001)
    made.host.confirm()
    (left,) = made.told
    assert isinstance(left, TimeLeft)
    assert 700_900 <= left.remaining_ms <= 701_000
    made.host.hold = True
    await made.keep_alive(7)
    made.host.confirm()
    assert len(made.told) == 1, "the next leader would still start with less"
    made.host.commit()
    assert made.told[1:] == [TimeLeft(1000, 1_000_000)]
    lease = made.engine.leases.find(7)
    assert lease is not None
    assert lease.remaining_seconds == 0


async def _checkpoint_on_its_way_is_undone_as_well(made: Scene) -> None:
    made.lessor._clock.checkpoints = True
    made.apply(LeaseGrant(7, 1000))
    made.host.hold = True
    await asyncio.sleep(300.3)
    assert len(made.host.proposed) == 1
    await made.keep_alive(7)
    made.host.confirm()
    assert made.told == []
    made.host.commit()
    assert made.told == [TimeLeft(1000, 1_000_000)]
    lease = made.engine.leases.find(7)
    assert lease is not None
    assert lease.remaining_seconds == 0


async def _checkpoint_knows_of_a_keep_alive_before_it(made: Scene) -> None:
    """More leases than one command holds: the last of them is kept alive before its checkpoint."""
    made.lessor._clock.checkpoints = True
    made.apply(*(LeaseGrant(number, 1000) for number in range(1, LEASE_CHECKPOINTS_MAX + 2)))
    last = LEASE_CHECKPOINTS_MAX + 1
    await asyncio.sleep(300.1)
    assert made.engine.leases.find(1).remaining_seconds == 700 + 1
    assert made.engine.leases.find(last).remaining_seconds == 0, "its checkpoint is yet to come"
    await made.keep_alive(last)
    made.host.confirm()
    assert made.told == [TimeLeft(1000, 1_000_000)]
    await asyncio.sleep(1)
    assert made.engine.leases.find(last).remaining_seconds == 1000, "the next leader starts it with no less"


async def _checkpoint_behind_the_undoing_of_another_is_undone_too(made: Scene) -> None:
    made.lessor._clock.checkpoints = True
    made.apply(LeaseGrant(7, 1000))
    await asyncio.sleep(599.9)
    assert made.engine.leases.find(7).remaining_seconds
    made.host.hold = True
    await made.keep_alive(7)
    made.host.confirm()
    assert len(made.host.proposed) == 1
    await asyncio.sleep(1)
    assert len(made.host.proposed) == 2, "the next checkpoint, behind the undoing of the first"
    made.host.commit()
    assert made.told == [], "the next leader would start with less"
    made.host.commit()
    assert made.told == [TimeLeft(1000, 1_000_000)]
    assert made.engine.leases.find(7).remaining_seconds == 0


test_a_checkpoint_knows_of_a_keep_alive_before_it = scene(_checkpoint_knows_of_a_keep_alive_before_it)
test_a_checkpoint_behind_the_undoing_of_another_is_undone_too = scene(
    _checkpoint_behind_the_undoing_of_another_is_undone_too
)
test_a_checkpoint_shortens_the_next_start_until_a_keep_alive = scene(
    _checkpoint_shortens_the_next_leaders_start_until_a_keep_alive
)
test_a_checkpoint_on_its_way_is_undone_as_well = scene(_checkpoint_on_its_way_is_undone_as_well)
test_a_keep_alive_waits_for_a_round = scene(_keep_alive_waits_for_a_round)
test_waiting_keep_alives_share_a_leader_call = scene(_waiting_keep_alives_share_a_leader_call)
test_a_deposed_leader_acknowledges_nothing = scene(_deposed_leader_acknowledges_nothing)
test_a_keep_alive_waits_for_an_end_on_its_way = scene(_keep_alive_waits_for_an_expiry_in_flight)
test_only_the_latest_keep_alives_wait_for_an_end = scene(_only_the_latest_keep_alives_wait_for_an_end)
test_answered_keep_alives_make_space = scene(_answered_keep_alives_make_space)
test_an_end_of_unknown_outcome_is_proposed_again = scene(_unknown_end_is_proposed_again)
test_a_late_end_of_an_earlier_grant_decides_nothing = scene(_late_end_of_an_earlier_grant_decides_nothing)
test_an_end_of_a_lost_term_is_forgotten = scene(_end_of_a_lost_term_is_forgotten)
test_a_mass_expiry_is_spread = scene(_mass_expiry_is_spread)
test_followers_pass_on_what_waits = scene(_followers_pass_on_what_waits)
test_ids_are_chosen_and_short_times_lengthened = scene(_ids_are_chosen_and_short_times_lengthened)
test_time_left_counts_down = scene(_time_left_counts_down)
