"""Auto compaction: etcd's reading of its flags, etcd's timing, and a member that really compacts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from kvstore import Config
from kvstore.configuration.config_setting import ConfigError
from kvstore.configuration.member_config import PERIODIC, REVISION, parse_retention
from kvstore.errors import Compacted, KVError
from kvstore.server import auto_compaction
from kvstore.server.auto_compaction import ByRevision, Periodic
from kvstore.testing import run_virtual

HOUR = 3600.0


@pytest.mark.parametrize(
    ("mode", "text", "retention"),
    [
        (PERIODIC, "0", 0),
        (PERIODIC, "", 0),
        ("", "0", 0),
        (PERIODIC, "1", HOUR),
        (PERIODIC, "72", 72 * HOUR),
        (PERIODIC, "30m", 1800),
        (PERIODIC, "1h30m", 1.5 * HOUR),
        (PERIODIC, "1.5s", 1.5),
        (REVISION, "1000", 1000),
        (REVISION, "0", 0),
        (REVISION, "1us", 1000),  # etcd counts a duration's nanoseconds here
    ],
)
def test_retention_is_read_as_etcd_reads_it(mode: str, text: str, retention: float) -> None:
    assert parse_retention(mode, text) == retention


@pytest.mark.parametrize("text", ["x", "-1", "1d", "-1h", "1h 2m"])
def test_what_is_no_retention_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="error parsing CompactionRetention"):
        Config(auto_compaction_retention=text).validate()


def test_the_mode_is_checked() -> None:
    with pytest.raises(ConfigError, match='unknown auto-compaction-mode "x"'):
        Config(auto_compaction_mode="x").validate()
    with pytest.raises(ConfigError, match="--auto-compaction-mode is undefined"):
        Config(auto_compaction_mode="", auto_compaction_retention="1").validate()


def run(policy: Periodic, samples: range, leading: bool = True) -> list[tuple[int, int]]:
    """Sample number -> revision it compacts at; the revision grows by 100 with each sample."""
    found = []
    for number in samples:
        now = number * policy.pause_seconds
        at = policy.due(now, 1 + 100 * number, leading)
        if at:
            found.append((number, at))
            policy.done(now, at)
    return found


def test_up_to_an_hour_one_compaction_per_retention() -> None:
    policy = Periodic(600, now=0, revision=1)
    assert policy.pause_seconds == 60
    # what was current one retention and one sample ago
    assert run(policy, range(1, 41)) == [(10, 1), (20, 901), (30, 1901), (40, 2901)]


def test_above_an_hour_one_compaction_per_hour_after_the_first_retention() -> None:
    policy = Periodic(3 * HOUR, now=0, revision=1)
    assert policy.pause_seconds == 360
    assert run(policy, range(1, 61)) == [(30, 1), (40, 901), (50, 1901), (60, 2901)]


def test_a_follower_keeps_account_and_compacts_once_it_leads() -> None:
    policy = Periodic(600, now=0, revision=1)
    assert run(policy, range(1, 26), leading=False) == []
    assert run(policy, range(26, 27)) == [(26, 1501)]


def test_nothing_new_is_not_compacted_again_and_a_failure_is_tried_again() -> None:
    policy = Periodic(600, now=0, revision=5)
    assert policy.due(600, 5, True) == 5
    assert policy.due(660, 5, True) == 5  # not told that it was done
    policy.done(660, 5)
    assert [policy.due(660 + 60 * number, 5, True) for number in range(1, 30)] == [0] * 29


def test_by_revision_keeps_the_last_ones() -> None:
    policy = ByRevision(100)
    assert policy.pause_seconds == 300
    assert policy.due(0, 100, True) == 0
    assert policy.due(300, 150, False) == 0
    assert policy.due(600, 150, True) == 50
    assert policy.due(900, 150, True) == 50
    policy.done(900, 50)
    assert policy.due(1200, 150, True) == 0
    assert policy.due(1500, 151, True) == 51


@pytest.mark.asyncio
async def test_a_member_compacts_by_itself_and_the_leader_alone_proposes(members, until) -> None:
    cluster = await members.start(3, auto_compaction_retention="400ms")
    for number in range(5):
        await cluster[0].put(b"k", b"%d" % number)
    engines = [member.handle.node._machine for member in cluster]
    await until(lambda: all(engine.compact_revision == engines[0].revision for engine in engines))
    compactions = sum(member.handle.status().statistics.operations_proposed for member in cluster)
    assert compactions < 5 + 3 + 4  # the puts, the publications; at most a few for compaction


def test_what_was_compacted_by_somebody_else_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    outcomes = iter((KVError(), Compacted(), None))

    def compact(member: object, at: int, *, physical: bool, on_result: Callable[[object], None]) -> None:
        asked.append(at)
        on_result(next(outcomes))

    async def main() -> None:
        loop = asyncio.get_running_loop()
        member = SimpleNamespace(
            node=SimpleNamespace(leader=1), member_id=1, engine=SimpleNamespace(revision=150)
        )
        stop = auto_compaction.AutoCompaction(member, REVISION, 100, loop).start()
        await asyncio.sleep(300 * 4 + 1)
        assert asked == [50, 50], "a failure is tried again, and what is done is not"
        member.engine.revision = 160
        await asyncio.sleep(300 * 4)
        assert asked == [50, 50, 60]
        stop()

    monkeypatch.setattr(auto_compaction, "compact", compact)
    run_virtual(main())
