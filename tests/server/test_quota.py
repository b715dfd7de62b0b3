"""The quota: where it begins to refuse, and that a flood of refusals asks for one alarm."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from kvstore.engine import Alarm, AlarmAction, AlarmMember, AlarmType, DeleteRange, Put, quota_cost_bytes
from kvstore.errors import KVError, NoSpace
from kvstore.replica.quota import Quota

PUT = Put(b"key", b"value")
COST = quota_cost_bytes(PUT)


class Member:
    """The parts of a member behind a quota; proposals wait for the test."""

    member_id = 1

    def __init__(self, logical_bytes: int) -> None:
        self.standing: tuple[AlarmMember, ...] = ()
        self.engine = SimpleNamespace(logical_bytes=logical_bytes, alarms=lambda: self.standing)
        self.proposed: list[tuple[Alarm, Any]] = []

    def propose(self, command: Alarm, on_result: Any) -> None:
        self.proposed.append((command, on_result))


def quota(member: Member, limit_bytes: int | None) -> Quota:
    return Quota(member.engine, member.member_id, member.propose, limit_bytes)


def refuse(tested: Quota) -> None:
    with pytest.raises(NoSpace):
        tested.admit(PUT)


@pytest.mark.parametrize(("limit_bytes", "fits"), [(1000 + COST, False), (1001 + COST, True), (None, True)])
def test_what_reaches_the_limit_does_not_fit(limit_bytes: int | None, fits: bool) -> None:
    member = Member(1000)
    if fits:
        quota(member, limit_bytes).admit(PUT)
        assert member.proposed == []
    else:
        refuse(quota(member, limit_bytes))
        ((alarm, _),) = member.proposed
        assert alarm == Alarm(action=AlarmAction.ACTIVATE, member_id=1, alarm=AlarmType.NOSPACE)


def test_what_stores_nothing_is_vote_eligible_beyond_the_limit() -> None:
    member = Member(1000)
    quota(member, 1).admit(DeleteRange(b"key"))
    assert member.proposed == []


def test_a_flood_asks_for_one_alarm_until_that_is_decided() -> None:
    member = Member(1000)
    tested = quota(member, 1)
    for _ in range(5):
        refuse(tested)
    assert len(member.proposed) == 1
    member.proposed[0][1](KVError())
    refuse(tested)
    assert len(member.proposed) == 2, "the first came to nothing"
    member.standing = (AlarmMember(1, AlarmType.NOSPACE),)
    member.proposed[1][1](None)
    refuse(tested)
    assert len(member.proposed) == 2, "the alarm stands"
    member.standing = (AlarmMember(2, AlarmType.NOSPACE), AlarmMember(1, AlarmType.CORRUPT))
    refuse(tested)
    assert len(member.proposed) == 3, "neither another's nor another alarm of our own"
