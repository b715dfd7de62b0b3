"""Txn: choosing the branch, checking it whole, running it as one step (reference: etcd v3 API, txn)."""

from __future__ import annotations

import pytest

from kvstore.engine import (
    OPEN_END,
    Compare,
    CompareResult,
    CompareTarget,
    DeleteRange,
    Engine,
    Put,
    Range,
    Txn,
    is_deletion,
    is_read_only,
    is_serializable,
    quota_cost_bytes,
)
from kvstore.errors import Compacted, DuplicateKey, FutureRevision, KeyNotFound, KVError, LeaseNotFound

EQUAL, GREATER, LESS, NOT_EQUAL = CompareResult
VERSION, CREATE, MOD, VALUE, LEASE = CompareTarget


@pytest.fixture
def filled(shell):
    """a: create 2, mod 4, version 2, value "2"; b: create 3, mod 3, version 1, value "1"."""
    for key, value in ((b"a", b"1"), (b"b", b"1"), (b"a", b"2")):
        shell.put(key, value)
    return shell


@pytest.mark.parametrize(
    ("key", "target", "result", "operand", "holds"),
    [
        (b"a", VERSION, EQUAL, 2, True),
        (b"a", VERSION, GREATER, 1, True),
        (b"a", VERSION, GREATER, 2, False),
        (b"a", VERSION, LESS, 3, True),
        (b"a", VERSION, LESS, 2, False),
        (b"a", VERSION, NOT_EQUAL, 2, False),
        (b"a", CREATE, EQUAL, 2, True),
        (b"a", MOD, EQUAL, 4, True),
        (b"a", MOD, GREATER, -1, True),
        (b"a", LEASE, EQUAL, 0, True),
        (b"a", VALUE, EQUAL, b"2", True),
        (b"a", VALUE, NOT_EQUAL, b"2", False),
        (b"a", VALUE, GREATER, b"1\xff", True),
        (b"a", VALUE, LESS, b"2\0", True),
        (b"a", VALUE, EQUAL, b"", False),
        # a missing key: all numbers are 0, but no statement about its value holds
        (b"no", VERSION, EQUAL, 0, True),
        (b"no", CREATE, LESS, 1, True),
        (b"no", MOD, NOT_EQUAL, 0, False),
        (b"no", LEASE, EQUAL, 0, True),
        (b"no", VALUE, EQUAL, b"", False),
        (b"no", VALUE, NOT_EQUAL, b"x", False),
        (b"no", VALUE, LESS, b"x", False),
        # a union member that is not the target's counts as absent
        (b"a", VERSION, GREATER, b"9", True),
        (b"a", VALUE, GREATER, 9, True),
        # numbers unknown to this version
        (b"a", 9, EQUAL, 5, True),
        (b"a", 9, GREATER, 5, False),
        (b"a", VERSION, 9, 5, True),
        (b"no", 9, EQUAL, 5, True),
    ],
)
def test_a_compare(filled, key, target, result, operand, holds) -> None:
    assert filled.txn([Compare(key, target, result, operand)]).succeeded is holds


@pytest.mark.parametrize(
    ("range_end", "target", "result", "operand", "holds"),
    [
        (b"c", VERSION, GREATER, 0, True),
        (b"c", VERSION, EQUAL, 1, False),
        (OPEN_END, CREATE, LESS, 4, True),
        (OPEN_END, VALUE, NOT_EQUAL, b"x", True),
        (OPEN_END, VALUE, EQUAL, b"2", False),
        (b"a", VERSION, EQUAL, 0, True),  # an empty interval stands for one missing key
        (b"a", VERSION, GREATER, 0, False),
        (b"a", VALUE, NOT_EQUAL, b"x", False),
    ],
)
def test_a_compare_of_an_interval_must_hold_for_every_key(
    filled, range_end, target, result, operand, holds
) -> None:
    assert filled.txn([Compare(b"a", target, result, operand, range_end)]).succeeded is holds


def test_all_compares_must_hold_and_none_is_true(filled) -> None:
    good, bad = Compare(b"a", VERSION, EQUAL, 2), Compare(b"a", VERSION, EQUAL, 1)
    assert filled.txn().succeeded
    assert filled.txn([good, good]).succeeded
    assert not filled.txn([good, bad]).succeeded
    result = filled.txn([bad], [Put(b"yes")], [Put(b"no")])
    assert not result.succeeded
    assert filled.keys() == [b"a", b"b", b"no"]


def test_operations_run_in_order_in_one_revision_and_see_each_other(filled) -> None:
    result = filled.txn(
        (),
        [
            Range(b"c"),
            Put(b"c", b"new"),
            Range(b"c"),
            DeleteRange(b"a", prev_kv=True),
            Range(b"\0", b"\0"),
            Put(b"b", prev_kv=True),
        ],
    )
    before, put, after, deletion, everything, last = result.results
    assert (before.count, before.revision) == (0, 4)
    assert (put.revision, after.revision, deletion.revision, last.revision, result.revision) == (5,) * 5
    assert after.kvs == [(b"c", 5, 5, 1, b"new", 0)]
    assert [kv.value for kv in deletion.prevs] == [b"2"]
    assert [kv.key for kv in everything.kvs] == [b"b", b"c"]
    assert last.prev.value == b"1"
    assert filled.engine.revision == 5


def test_an_older_revision_does_not_see_the_transaction(filled) -> None:
    result = filled.txn(
        (), [DeleteRange(b"b"), Put(b"c"), Range(b"\0", b"\0", revision=4), Range(b"\0", b"\0", revision=2)]
    )
    assert [[kv.key for kv in each.kvs] for each in result.results[2:]] == [[b"a", b"b"], [b"a"]]
    assert [each.revision for each in result.results] == [5, 5, 5, 5]


def test_a_transaction_that_changes_nothing_makes_no_revision(filled) -> None:
    result = filled.txn((), [DeleteRange(b"no"), Range(b"a")], [Put(b"a")])
    assert (result.revision, filled.engine.revision) == (4, 4)
    assert result.results[0] == (4, 0, [])


def test_nested_compares_see_the_state_before_the_transaction(filled) -> None:
    exists = Compare(b"c", VERSION, GREATER, 0)
    inner = Txn((exists,), (Put(b"then"),), (Put(b"else"), Txn((exists,), (), (Put(b"deep"),))))
    result = filled.txn((), [Put(b"c"), inner, Range(b"c")])
    nested = result.results[1]
    assert not nested.succeeded
    assert nested.revision == 0
    assert not nested.results[1].succeeded
    assert result.results[2].count == 1
    assert filled.keys() == [b"a", b"b", b"c", b"deep", b"else"]


@pytest.mark.parametrize(
    ("operation", "error"),
    [
        (Put(b"no", ignore_value=True), KeyNotFound),
        (Put(b"no", ignore_lease=True), KeyNotFound),
        (Put(b"a", lease=9), LeaseNotFound),
        (Put(b"no", lease=9, ignore_value=True), KeyNotFound),
        (Range(b"a", revision=5), FutureRevision),
        (Range(b"a", revision=2), Compacted),
        (Range(b"a", revision=-1), Compacted),
        (Txn((), (Range(b"a", revision=2),)), Compacted),
    ],
)
@pytest.mark.parametrize("writes", [True, False])
def test_what_fails_on_the_path_aborts_all_of_it(filled, operation, error, writes) -> None:
    filled.compact(3)
    with pytest.raises(error):
        filled.txn((), ([Put(b"first")] if writes else []) + [operation])
    assert filled.engine.revision == 4
    assert filled.keys() == [b"a", b"b"]
    # what is not on the path does not matter
    assert filled.txn((), [Put(b"first")], [operation]).succeeded


def test_puts_are_checked_before_ranges(filled) -> None:
    with pytest.raises(KeyNotFound):
        filled.txn((), [Range(b"a", revision=99), Put(b"no", ignore_value=True)])


def test_a_negative_revision_is_refused_only_below_minus_one_before_a_compaction(filled) -> None:
    assert filled.txn((), [Range(b"a", revision=-1)]).results[0].count == 1
    with pytest.raises(Compacted):
        filled.txn((), [Range(b"a", revision=-2)])


def test_an_open_ended_deletion_may_overlap_puts_and_takes_their_base_away(filled) -> None:
    """etcd does not see this overlap; where that would kill it, the transaction is refused."""
    result = filled.txn((), [Put(b"c"), DeleteRange(b"b", OPEN_END), Put(b"d")])
    assert result.results[1].deleted == 2
    assert filled.keys() == [b"a", b"d"]
    revision = filled.engine.revision
    for lost in (
        [DeleteRange(b"b", OPEN_END), Put(b"d", ignore_value=True)],
        [Txn((), (DeleteRange(b"b", OPEN_END),)), Txn((), (Put(b"d", ignore_lease=True),))],
    ):
        with pytest.raises(KeyNotFound):
            filled.txn((), lost)
    assert filled.engine.revision == revision
    kept = filled.txn((), [DeleteRange(b"b", OPEN_END), Put(b"a", ignore_value=True)])
    assert kept.results[0].deleted == 1
    assert filled.range(b"a").kvs[0].value == b"2"


def test_several_changes_of_one_key_in_one_revision_keep_their_order(filled) -> None:
    ends = [DeleteRange(b"a", OPEN_END), Put(b"a", b"3"), DeleteRange(b"a", OPEN_END)]
    filled.engine.observing = True
    filled.txn((), ends)
    (made,) = filled.engine.take_changes()
    assert [(is_deletion(change), change[0]) for change in made.changes] == [
        (True, b"a"),
        (True, b"b"),
        (False, b"a"),
        (True, b"a"),
    ]
    assert filled.keys(revision=5) == []
    assert filled.keys(revision=4) == [b"a", b"b"]
    for step in range(2):
        before = filled.engine.hash_kv()
        filled.reload()
        assert filled.engine.hash_kv() == before
        if not step:
            filled.compact(5, physical=True)
    filled.put(b"c")
    filled.compact(6, physical=True)
    assert filled.engine.logical_bytes == filled.engine.logical_bytes_in_use


def test_what_can_be_read_without_the_log() -> None:
    read, write = Range(b"a"), Put(b"a")
    local = Range(b"a", serializable=True)
    assert is_read_only(Txn())
    assert is_read_only(Txn((), (read,), (Txn((), (read,)),)))
    assert not is_read_only(Txn((), (), (write,)))
    assert not is_read_only(Txn((), (Txn((), (DeleteRange(b"a"),)),)))
    assert is_serializable(Txn((), (local,), (local,)))
    assert not is_serializable(Txn((), (local,), (read,)))
    assert not is_serializable(Txn((), (Txn((), (local,)),)))
    with pytest.raises(AssertionError):
        Engine().read_txn(Txn((), (write,)))


def test_the_cost_of_a_request_against_the_quota() -> None:
    put = Put(b"abc", b"defg")
    assert quota_cost_bytes(put) == 256 + 7
    assert quota_cost_bytes(Txn((), (put, Range(b"a")), (put, put, DeleteRange(b"a")))) == 2 * 263
    assert quota_cost_bytes(Txn((), (Txn((), (put,), ()), put), ())) == 2 * 263
    assert quota_cost_bytes(Txn((), (DeleteRange(b"a"),))) == 0
    assert quota_cost_bytes(DeleteRange(b"a")) == 0


def test_a_refusal_is_the_error_with_code_and_text(filled) -> None:
    with pytest.raises(KVError) as caught:
        filled.txn((), [Put(b"x"), Put(b"x")])
    assert isinstance(caught.value, DuplicateKey)
    assert (int(caught.value.code), caught.value.text) == (
        3,
        "etcdserver: duplicate key given in txn request",
    )
