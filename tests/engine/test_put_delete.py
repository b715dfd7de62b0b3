"""Revisions, Put and DeleteRange (reference: etcd v3 API, revisions, put, delete range)."""

from __future__ import annotations

import pytest

from kvstore.engine import OPEN_END
from kvstore.errors import EmptyKey, KeyNotFound, LeaseNotFound, LeaseProvided, ValueProvided


def test_an_empty_store_is_at_revision_one_and_the_first_write_makes_two(shell) -> None:
    assert shell.engine.revision == 1
    assert shell.range(b"a").revision == 1
    assert shell.put(b"a").revision == 2


def test_a_key_counts_its_versions_and_begins_anew_after_deletion(shell) -> None:
    shell.put(b"a", b"1")
    shell.put(b"b")
    shell.put(b"a", b"2")
    assert shell.range(b"a").kvs == [(b"a", 2, 4, 2, b"2", 0)]
    assert shell.delete(b"a").revision == 5
    shell.put(b"a", b"3")
    assert shell.range(b"a").kvs == [(b"a", 6, 6, 1, b"3", 0)]


@pytest.mark.parametrize("key", [b"none", b"z"])
def test_deleting_nothing_makes_no_revision(shell, key) -> None:
    shell.put(b"a")
    result = shell.delete(key, prev_kv=True)
    assert result == (2, 0, [])
    assert shell.engine.revision == 2


def test_a_deletion_of_many_keys_is_one_revision(shell) -> None:
    for key in (b"a", b"b", b"c", b"d"):
        shell.put(key, key)
    result = shell.delete(b"b", b"d", prev_kv=True)
    assert (result.revision, result.deleted) == (6, 2)
    assert [kv.value for kv in result.prevs] == [b"b", b"c"]
    assert shell.keys() == [b"a", b"d"]


@pytest.mark.parametrize(
    ("key", "range_end", "left"),
    [
        (b"b", b"", [b"a", b"c"]),
        (b"b", OPEN_END, [b"a"]),
        (OPEN_END, OPEN_END, []),
        (b"c", b"a", [b"a", b"b", b"c"]),
        (b"b", b"b", [b"a", b"b", b"c"]),
    ],
)
def test_the_interval_of_a_deletion(shell, key, range_end, left) -> None:
    for each in (b"a", b"b", b"c"):
        shell.put(each)
    assert shell.delete(key, range_end).deleted == 3 - len(left)
    assert shell.keys() == left


def test_prevs_are_returned_only_when_asked_for(shell) -> None:
    assert shell.put(b"a", b"1", prev_kv=True).prev is None
    assert shell.put(b"a", b"2").prev is None
    assert shell.put(b"a", b"3", prev_kv=True).prev == (b"a", 2, 3, 2, b"2", 0)
    assert shell.delete(b"a").prevs == []


def test_ignore_value_keeps_it_and_still_counts(shell) -> None:
    shell.put(b"a", b"kept")
    shell.put(b"a", ignore_value=True)
    assert shell.range(b"a").kvs == [(b"a", 2, 3, 2, b"kept", 0)]


def test_ignore_lease_keeps_it(shell) -> None:
    shell.put(b"a", b"1")
    shell.put(b"a", b"2", ignore_lease=True)
    assert shell.range(b"a").kvs == [(b"a", 2, 3, 2, b"2", 0)]


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"key": b""}, EmptyKey, "etcdserver: key is not provided"),
        ({"key": b"", "value": b"x", "ignore_value": True}, EmptyKey, "etcdserver: key is not provided"),
        ({"key": b"a", "value": b"x", "ignore_value": True}, ValueProvided, "etcdserver: value is provided"),
        ({"key": b"a", "lease": 1, "ignore_lease": True}, LeaseProvided, "etcdserver: lease is provided"),
        (
            {"key": b"a", "value": b"x", "lease": 1, "ignore_value": True, "ignore_lease": True},
            ValueProvided,
            "etcdserver: value is provided",
        ),
        ({"key": b"no", "ignore_value": True}, KeyNotFound, "etcdserver: key not found"),
        ({"key": b"no", "ignore_lease": True}, KeyNotFound, "etcdserver: key not found"),
        ({"key": b"a", "lease": 99}, LeaseNotFound, "etcdserver: requested lease not found"),
        (
            {"key": b"no", "lease": 99, "ignore_value": True},
            LeaseNotFound,
            "etcdserver: requested lease not found",
        ),
    ],
)
def test_a_refused_put_says_why_and_changes_nothing(shell, options, error, text) -> None:
    shell.put(b"a", b"1")
    with pytest.raises(error) as caught:
        shell.put(**options)
    assert str(caught.value) == text
    assert shell.engine.revision == 2
    assert shell.keys() == [b"a"]


def test_a_deletion_needs_a_key(shell) -> None:
    with pytest.raises(EmptyKey):
        shell.delete(b"", OPEN_END)


def test_sizes_follow_what_is_stored(shell) -> None:
    engine = shell.engine
    assert engine.logical_bytes == engine.logical_bytes_in_use == 0
    shell.put(b"a", b"1")
    one = engine.logical_bytes
    assert one == engine.logical_bytes_in_use
    shell.put(b"a", b"2")
    assert engine.logical_bytes == 2 * one
    assert engine.logical_bytes_in_use == one
    shell.delete(b"a")
    assert engine.logical_bytes_in_use == 0
    assert engine.key_count == 0
    shell.put(b"b")
    shell.compact(engine.revision, physical=True)
    assert engine.logical_bytes == engine.logical_bytes_in_use == one - 1
