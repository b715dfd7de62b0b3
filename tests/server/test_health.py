"""What `/health` says when something is missing: etcd's reasons, in etcd's order."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from kvstore.engine import AlarmMember, AlarmType
from kvstore.errors import KVError, ReadTimedOut
from kvstore.server.health_check import Health, check_health


@dataclass
class FakeMember:
    """As much of a member as its health depends on; it is its own engine."""

    standing: list[AlarmMember] = field(default_factory=list)
    leader: bool = True
    error: KVError | None = None

    @property
    def engine(self) -> FakeMember:
        return self

    def alarms(self) -> list[AlarmMember]:
        return self.standing

    def has_leader(self) -> bool:
        return self.leader

    def barrier(self, on_result) -> None:
        on_result(self.error)


def judge(member: FakeMember, *, serializable: bool = False, excluded: tuple[str, ...] = ()) -> Health:
    verdicts: list[Health] = []
    check_health(member, serializable=serializable, excluded_alarms=excluded, on_result=verdicts.append)
    (verdict,) = verdicts
    return verdict


CORRUPT = AlarmMember(7, AlarmType.CORRUPT)


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (FakeMember(), ""),
        (FakeMember(error=ReadTimedOut()), "RANGE ERROR:etcdserver: request timed out"),
        (FakeMember(leader=False, error=ReadTimedOut()), "RAFT NO LEADER"),
        (FakeMember(standing=[CORRUPT], leader=False), "ALARM CORRUPT"),
    ],
)
def test_the_first_thing_missing_is_the_reason(member: FakeMember, reason: str) -> None:
    assert judge(member) == Health(not reason, reason)


def test_a_serializable_check_needs_no_quorum_but_hears_alarms() -> None:
    assert judge(FakeMember(leader=False, error=ReadTimedOut()), serializable=True).healthy
    alarmed = FakeMember(standing=[CORRUPT])
    assert judge(alarmed, serializable=True) == Health(False, "ALARM CORRUPT")
    assert judge(alarmed, excluded=("CORRUPT",)).healthy
