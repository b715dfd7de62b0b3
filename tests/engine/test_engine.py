"""The engine as the log drives it: batches, refusals, the backend, events, alarms, members."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from kvstore.engine import (
    Alarm,
    AlarmAction,
    AlarmMember,
    AlarmType,
    BackendError,
    Command,
    CommandError,
    Compact,
    DeleteRange,
    Engine,
    Member,
    Outcome,
    Put,
    PutResult,
    Range,
    SetMemberAttributes,
    Txn,
    encode,
    to_event,
)
from kvstore.errors import Corrupt, KVError, LeaseNotFound, MemberNotFound, NoSpace

MEMBERS = (Member(2, "", ("http://b:1",)), Member(1, "", ("http://a:1",), (), True))


def apply(engine: Engine, *commands: Command) -> Sequence[Outcome]:
    return engine.apply(1, 1, [encode(command) for command in commands], True)


def backend_of(engine: Engine) -> dict[bytes, bytes]:
    """The whole backend of an engine that was never drained before."""
    return {row: value for row, value in engine.drain_changes() if value is not None}


def reload(backend: dict[bytes, bytes]) -> Engine:
    engine = Engine()
    rows = sorted(backend.items())
    for start in range(0, len(rows), 3):
        engine.load(rows[start : start + 3])
    engine.load_done()
    return engine


def test_each_command_of_a_batch_has_its_own_revision_and_fails_alone() -> None:
    engine = Engine()
    outcomes = apply(
        engine, Put(b"a", b"1"), Put(b"a", b"2", lease=7), Put(b"b"), DeleteRange(b"zz"), Put(b"a")
    )
    assert [getattr(outcome, "revision", None) for outcome in outcomes] == [2, None, 3, 3, 4]
    assert isinstance(outcomes[1], LeaseNotFound)
    assert engine.revision == 4


def test_unwanted_outcomes_are_not_made() -> None:
    engine = Engine()
    assert not engine.apply(1, 1, [encode(Put(b"a")), encode(DeleteRange(b"a"))], False)
    assert engine.revision == 3


@pytest.mark.parametrize(
    "data",
    [b"", b"\x01", b"\x02\x01", b"\x01\x63", encode(Put(b"abc"))[:16], encode(Txn((), (Put(b"a"),)))[:-1]],
)
def test_bytes_that_are_no_command_stop_the_member(data: bytes) -> None:
    with pytest.raises(CommandError):
        Engine().apply(1, 1, [data], True)


def test_a_snapshot_rebuilds_the_engine() -> None:
    engine = Engine(members=MEMBERS)
    apply(
        engine,
        Put(b"a\0b", b"1"),
        Put(b"a", b"2"),
        Put(b"a\0", b"3"),
        Put(b"a", b"4"),
        DeleteRange(b"a\0"),
        SetMemberAttributes(1, "one", ("http://c:1", "http://c:2")),
        Alarm(AlarmAction.ACTIVATE, 5, AlarmType.NOSPACE),
    )
    again = reload(backend_of(engine))
    assert again.hash_kv() == engine.hash_kv()
    assert again.range(Range(b"\0", b"\0")) == engine.range(Range(b"\0", b"\0"))
    assert again.range(Range(b"\0", b"\0", revision=4)) == engine.range(Range(b"\0", b"\0", revision=4))
    assert again.members() == engine.members()
    assert [member.name for member in again.members()] == ["one", ""]
    assert again.alarms() == engine.alarms() == (AlarmMember(5, AlarmType.NOSPACE),)
    assert again.logical_bytes == engine.logical_bytes
    assert again.logical_bytes_in_use == engine.logical_bytes_in_use
    assert not again.drain_changes()


def test_an_empty_snapshot_leaves_the_bootstrap_membership() -> None:
    engine = Engine(members=MEMBERS)
    engine.load([])
    engine.load_done()
    assert [member.id for member in engine.members()] == [1, 2]
    assert len(engine.drain_changes()) == 3


def test_a_drain_returns_only_what_changed() -> None:
    engine = Engine(members=MEMBERS)
    apply(engine, Put(b"a"))
    assert engine.pending_change_bytes() > 0
    assert len(engine.drain_changes()) == 4
    assert engine.pending_change_bytes() == 0
    assert not engine.drain_changes()
    apply(engine, Put(b"b"), Put(b"b"))
    assert len(engine.drain_changes()) == 3


@pytest.mark.parametrize("rows", [[(b"s", b"\x09" + bytes(16))], [(b"x", b"")]])
def test_a_snapshot_of_another_version_is_refused(rows: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(BackendError):
        Engine().load(rows)


def test_while_short_of_space_only_what_adds_is_refused() -> None:
    engine = Engine()
    apply(engine, Put(b"a"), Put(b"b"), Alarm(AlarmAction.ACTIVATE, 1, AlarmType.NOSPACE))
    nested = Txn((), (Txn((), (), (Put(b"x"),)),))
    refused = apply(engine, Put(b"c"), Txn((), (), (Put(b"c"),)), nested)
    assert all(isinstance(outcome, NoSpace) for outcome in refused)
    allowed = apply(engine, DeleteRange(b"a"), Txn((), (DeleteRange(b"b"),)), Compact(3))
    assert not any(isinstance(outcome, KVError) for outcome in allowed)
    apply(engine, Alarm(AlarmAction.DEACTIVATE, 1, AlarmType.NOSPACE))
    assert isinstance(apply(engine, Put(b"c"))[0], PutResult)


def test_while_corrupt_everything_that_changes_keys_is_refused() -> None:
    engine = Engine()
    apply(engine, Put(b"a"), Alarm(AlarmAction.ACTIVATE, 1, AlarmType.CORRUPT))
    refused = apply(engine, Put(b"a"), DeleteRange(b"a"), Txn(), Compact(2))
    assert all(isinstance(outcome, Corrupt) for outcome in refused)
    assert engine.range(Range(b"a")).count == 1


def test_alarms_answer_what_they_acted_on() -> None:
    engine = Engine()
    raised, unknown, kept, cleared, again = apply(
        engine,
        Alarm(AlarmAction.ACTIVATE, 0, AlarmType.NOSPACE),
        Alarm(AlarmAction.ACTIVATE, 0, AlarmType.NONE),
        Alarm(AlarmAction.ACTIVATE, 0, AlarmType.NOSPACE),
        Alarm(AlarmAction.DEACTIVATE, 0, AlarmType.NOSPACE),
        Alarm(AlarmAction.DEACTIVATE, 0, AlarmType.NOSPACE),
    )
    alarm = (AlarmMember(0, AlarmType.NOSPACE),)
    assert [getattr(outcome, "alarms", None) for outcome in (raised, unknown, kept, cleared, again)] == [
        alarm,
        (),
        alarm,
        alarm,
        (),
    ]
    assert engine.revision == 1


def test_an_unknown_member_cannot_publish() -> None:
    assert isinstance(apply(Engine(), SetMemberAttributes(9, "x", ()))[0], MemberNotFound)


def test_events_carry_the_pair_before_and_keep_revisions_whole() -> None:
    engine = Engine()
    apply(engine, Put(b"a", b"unseen"))
    assert not engine.take_changes()
    engine.observing = True
    apply(
        engine,
        Put(b"a", b"1"),
        Txn((), (Put(b"b"), DeleteRange(b"a"))),
        DeleteRange(b"zz"),
        Put(b"c", lease=1),
    )
    taken = engine.take_changes()
    events = [(each.revision, [to_event(change) for change in each.changes]) for each in taken]
    assert [(revision, [(e.is_delete, e.kv.key) for e in made]) for revision, made in events] == [
        (3, [(False, b"a")]),
        (4, [(False, b"b"), (True, b"a")]),
    ]
    assert events[0][1][0].prev is not None
    assert events[0][1][0].prev.value == b"unseen"
    deletion = events[1][1][1]
    assert deletion.kv == (b"a", 0, 4, 0, b"", 0)
    assert deletion.prev is not None
    assert deletion.prev.value == b"1"
    assert not engine.take_changes()
