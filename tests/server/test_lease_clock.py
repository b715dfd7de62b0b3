"""Deadlines of leases: who is due, in what order, and what a new leadership means."""

from __future__ import annotations

from kvstore.engine import Engine, LeaseGrant, LeaseRevoke, encode
from kvstore.lease import lease_clock
from kvstore.lease.lease_clock import STALE_ENTRIES_MIN, Due, LeaseClock


class Clocked:
    def __init__(self) -> None:
        self.engine = Engine()
        self.clock = LeaseClock(lambda: self.engine.leases)
        self.index = 0

    def apply(self, command) -> int:
        self.index += 1
        self.engine.apply(self.index, 1, [encode(command)], False)
        return self.index

    def due(self, now_s: float, limit: int = 100) -> list[int]:
        self.clock.sync(now_s)
        return [each.id for each in self.clock.due(now_s, limit)]


def test_leases_are_due_in_the_order_of_their_deadlines_and_once() -> None:
    one = Clocked()
    one.clock.promote(1, 0.0)
    for lease, ttl in ((1, 30), (2, 10), (3, 20)):
        one.apply(LeaseGrant(lease, ttl))
    one.clock.sync(5.0)
    assert one.due(14.9) == []
    assert one.due(15.0) == [2]
    assert one.due(40.0) == [3, 1]
    assert one.due(99.0) == []
    assert sorted(one.clock.expiring) == [1, 2, 3]


def test_a_keep_alive_moves_the_deadline() -> None:
    one = Clocked()
    one.clock.promote(1, 0.0)
    one.apply(LeaseGrant(1, 10))
    one.clock.sync(0.0)
    assert one.clock.keep_alive(1, 8.0) == 10
    assert one.clock.keep_alive(2, 8.0) == 0
    assert one.due(17.9) == []
    assert one.clock.remaining_s(1, 17.0) == 1.0
    assert one.due(18.0) == [1]


def test_a_new_leadership_gives_everybody_the_full_time_again() -> None:
    one = Clocked()
    one.apply(LeaseGrant(1, 10))
    assert one.due(99.0) == [], "who does not lead measures nothing"
    one.clock.promote(1, 100.0)
    assert one.due(109.9) == []
    assert one.due(110.0) == [1]
    one.clock.promote(2, 115.0)
    assert one.due(124.9) == []
    one.clock.demote()
    assert one.due(999.0) == []


def test_very_many_leases_are_taken_up_piece_by_piece(monkeypatch) -> None:
    monkeypatch.setattr(lease_clock, "READ_PER_CALL_MAX", 3)
    one = Clocked()
    for lease in range(1, 11):
        one.apply(LeaseGrant(lease, 10))
    one.clock.promote(1, 100.0)
    assert one.clock.remaining_s(1, 104.0) == 6.0
    assert one.clock.keep_alive(2, 105.0) == 10
    one.apply(LeaseRevoke(3))
    granted_at = one.apply(LeaseGrant(3, 10))
    one.apply(LeaseRevoke(4))
    one.clock.sync(106.0)
    found = [each for now_s in (110.0, 111.0, 112.0, 113.0) for each in one.due(now_s)]
    assert sorted(found) == [1, 5, 6, 7, 8, 9, 10]
    assert one.due(115.0) == [2]
    one.clock.sync(116.0)
    assert one.clock.due(116.0, 9) == [Due(3, granted_at)]


def test_an_id_granted_again_is_another_lease() -> None:
    one = Clocked()
    one.clock.promote(1, 0.0)
    one.apply(LeaseGrant(1, 10))
    assert one.due(0.0) == []
    assert one.clock.due(10.0, 9) == [Due(1, 1)]
    one.apply(LeaseRevoke(1))
    granted_at = one.apply(LeaseGrant(1, 10))
    assert one.due(12.0) == []
    assert one.clock.expiring == {}
    one.clock.sync(12.0)
    assert one.clock.due(22.0, 9) == [Due(1, granted_at)]


def test_the_limit_bounds_one_look() -> None:
    one = Clocked()
    one.clock.promote(1, 0.0)
    for lease in range(1, 11):
        one.apply(LeaseGrant(lease, 10))
    one.clock.sync(0.0)
    assert [len(one.clock.due(10.0, 4)) for _ in range(4)] == [4, 4, 2, 0]


def test_ended_leases_leave_no_pile_behind() -> None:
    one = Clocked()
    one.clock.promote(1, 0.0)
    one.apply(LeaseGrant(9, 1000))
    for lease in range(10, 10 + 2 * STALE_ENTRIES_MIN):
        one.apply(LeaseGrant(lease, 1000))
        one.clock.sync(0.0)
        one.apply(LeaseRevoke(lease))
        one.clock.sync(0.0)
    assert len(one.clock._heap) <= STALE_ENTRIES_MIN + 3
    assert one.due(1000.0) == [9]
