"""Compaction: what stays readable, what is dropped and when, and that members stay equal."""

from __future__ import annotations

import pytest

from kvstore.engine import Alarm, AlarmAction, AlarmType, Compact, DeleteRange, Put, encode
from kvstore.engine import engine as engine_module
from kvstore.engine.engine import SWEEP_PER_BATCH
from kvstore.errors import Compacted, FutureRevision


def test_it_raises_no_revision_and_answers_the_current_one(shell) -> None:
    shell.put(b"a")
    shell.put(b"a")
    assert shell.compact(2).revision == 3
    assert (shell.engine.revision, shell.engine.compact_revision) == (3, 2)


def test_the_bounds_of_a_compaction(shell) -> None:
    shell.put(b"a")
    shell.put(b"a")
    with pytest.raises(FutureRevision, match="required revision is a future revision"):
        shell.compact(4)
    shell.compact(3)
    for revision in (3, 2, 0, -1):
        with pytest.raises(Compacted, match="required revision has been compacted"):
            shell.compact(revision)


def test_an_empty_store_can_be_compacted_at_zero_once(shell) -> None:
    assert shell.engine.compact_revision == -1
    with pytest.raises(Compacted):
        shell.compact(-1)
    shell.compact(0)
    with pytest.raises(Compacted):
        shell.compact(0)
    shell.compact(1)
    assert shell.engine.compact_revision == 1


def test_the_newest_version_at_the_revision_stays(shell) -> None:
    for value in (b"1", b"2", b"3"):
        shell.put(b"a", value)
    shell.put(b"b", b"1")
    shell.put(b"a", b"4")
    shell.compact(4, physical=True)
    assert shell.range(b"a", revision=4).kvs[0].value == b"3"
    assert shell.range(b"a", revision=5).kvs[0].value == b"3"
    assert shell.range(b"a").kvs[0].value == b"4"
    assert len([row for row in rows_of(shell) if row.startswith(b"ka")]) == 2


def test_a_tombstone_at_the_revision_stays_until_the_next_compaction(shell) -> None:
    shell.put(b"a")
    shell.delete(b"a")
    shell.put(b"b")
    shell.compact(3, physical=True)
    assert shell.keys(revision=3) == []
    assert [row[:2] for row in rows_of(shell)] == [b"ka", b"kb", b"s"]
    shell.reload()
    shell.compact(4, physical=True)
    assert [row[:2] for row in rows_of(shell)] == [b"kb", b"s"]
    assert shell.engine.logical_bytes == shell.engine.logical_bytes_in_use


def test_a_key_deleted_and_put_again_loses_its_first_life(shell) -> None:
    for _ in range(3):
        shell.put(b"a", b"x")
        shell.delete(b"a")
    shell.put(b"a", b"y")
    shell.compact(shell.engine.revision, physical=True)
    assert len(rows_of(shell)) == 2
    assert shell.range(b"a").kvs == [(b"a", 8, 8, 1, b"y", 0)]


def rows_of(shell) -> list[bytes]:
    shell.drain()
    return sorted(shell.backend)


def fill(shell, records: int) -> None:
    commands = [encode(Put(b"key%d" % (number % 100), b"v")) for number in range(records + 100)]
    shell.engine.apply(1, 1, commands, False)


def test_dropping_goes_on_in_steps_and_stays_in_step_with_a_reloaded_member(shell) -> None:
    fill(shell, 3 * SWEEP_PER_BATCH - 100)
    before = shell.engine.hash_kv()
    assert before
    full = shell.engine.logical_bytes
    shell.compact(shell.engine.revision)
    after = shell.engine.hash_kv()
    assert after != before
    sizes = [shell.engine.logical_bytes]
    while sizes[-1] != shell.engine.logical_bytes_in_use:
        shell.reload()
        assert shell.engine.logical_bytes == sizes[-1]
        assert shell.engine.hash_kv() == after
        shell.delete(b"nothing")
        sizes.append(shell.engine.logical_bytes)
        assert len(sizes) < 9
    assert shell.engine.hash_kv() == after
    assert full > sizes[0] > sizes[1] > sizes[2]
    assert len(rows_of(shell)) == 101


def test_the_sweep_gains_on_the_writers(shell) -> None:
    fill(shell, 20 * SWEEP_PER_BATCH)
    shell.compact(shell.engine.revision)
    held = [shell.engine.logical_bytes]
    for _ in range(3):
        fill(shell, SWEEP_PER_BATCH)
        held.append(shell.engine.logical_bytes)
    assert held == sorted(held, reverse=True)


def test_old_tombstones_are_dropped_in_steps_too(shell, monkeypatch) -> None:
    monkeypatch.setattr(engine_module, "SWEEP_PER_BATCH", 1)
    for key in (b"a", b"b", b"c"):
        shell.put(key)
    shell.delete(b"a", b"c")
    shell.compact(5)
    while shell.engine.logical_bytes_in_use and len(rows_of(shell)) > 4:
        shell.delete(b"nothing")
    shell.put(b"c")
    shell.compact(6)
    steps = []
    for _ in range(4):
        shell.reload()
        steps.append([row[:2] for row in rows_of(shell)])
        shell.delete(b"nothing")
    assert steps == [[b"kb", b"kc", b"kc", b"s"], [b"kc", b"kc", b"s"], [b"kc", b"s"], [b"kc", b"s"]]


def test_compactions_may_pass_the_sweep(shell, monkeypatch) -> None:
    monkeypatch.setattr(engine_module, "SWEEP_PER_BATCH", 1)
    for key in (b"a", b"b", b"c", b"d"):
        shell.put(key)
    shell.delete(b"a", b"d")
    shell.put(b"d")
    shell.compact(6, physical=True)
    for revision in (7, 8):
        shell.put(b"d")
        shell.compact(revision)
    for _ in range(9):
        shell.delete(b"nothing")
    assert [row[:2] for row in rows_of(shell)] == [b"kd", b"kd", b"s"]


@pytest.mark.parametrize("physical", [True, False])
def test_all_is_dropped_at_once_when_asked_for_or_when_space_is_short(shell, physical) -> None:
    fill(shell, 3 * SWEEP_PER_BATCH)
    if not physical:
        shell.run(Alarm(AlarmAction.ACTIVATE, 1, AlarmType.NOSPACE))
    shell.compact(shell.engine.revision, physical=physical)
    assert shell.engine.logical_bytes == shell.engine.logical_bytes_in_use


def test_much_is_dropped_in_steps_that_are_asked_for(shell, monkeypatch) -> None:
    monkeypatch.setattr(engine_module, "SWEEP_PER_STEP", SWEEP_PER_BATCH)
    fill(shell, 6 * SWEEP_PER_BATCH)
    revision = shell.engine.revision
    outcome = shell.compact(revision, physical=True)
    steps = 0
    while outcome.sweeping:
        shell.reload()
        outcome = shell.run(Compact(revision, physical=True, resume=True))
        steps += 1
    assert steps == 3  # each command drops as much again behind itself
    assert shell.engine.logical_bytes == shell.engine.logical_bytes_in_use
    assert shell.engine.compact_revision == revision
    assert shell.run(Compact(1, physical=True, resume=True)) == (revision, False)
    with pytest.raises(Compacted):
        shell.compact(revision, physical=True)


def test_a_large_deletion_is_given_back_by_compacting_at_it(shell) -> None:
    for number in range(500):
        shell.put(b"key%d" % number, bytes(1000))
    before = shell.engine.logical_bytes
    shell.run(DeleteRange(b"\0", b"\0"))
    shell.compact(shell.engine.revision, physical=True)
    assert shell.engine.logical_bytes < before / 4
    shell.put(b"next")
    shell.compact(shell.engine.revision, physical=True)
    assert shell.engine.logical_bytes == shell.engine.logical_bytes_in_use
    assert len(rows_of(shell)) == 2


def test_a_record_dropped_before_it_was_drained_leaves_no_row(shell) -> None:
    shell.put(b"a", b"1")
    shell.put(b"a", b"2")
    shell.compact(3, physical=True)
    changes = dict(shell.engine.drain_changes())
    assert sorted(row[:2] for row, value in changes.items() if value is not None) == [b"ka", b"s"]
    assert sorted(row[:2] for row, value in changes.items() if value is None) == [b"ka"]
