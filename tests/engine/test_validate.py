"""The checks before proposing: which error comes first, and the overlap rule of transactions."""

from __future__ import annotations

import pytest

from kvstore.engine import OPEN_END, Compare, DeleteRange, Put, Range, Txn, check_txn, decode, encode
from kvstore.errors import DuplicateKey, EmptyKey, InvalidSortOption, KeyNotFound, TooManyOps, ValueProvided

COMPARE = Compare(b"a", 0, 0, 0)


def nested(depth: int, width: int = 1) -> Txn:
    """A transaction of so many levels below it, each level with `width` operations."""
    operations: tuple = (Range(b"a"),) * width
    for _ in range(depth):
        operations = (*((Range(b"a"),) * (width - 1)), Txn((), operations))
    return Txn((), operations)


@pytest.mark.parametrize(
    ("txn", "error"),
    [
        (Txn((COMPARE,) * 129), TooManyOps),
        (Txn((), (Range(b"a"),) * 129), TooManyOps),
        (Txn((), (), (Range(b"a"),) * 129), TooManyOps),
        # the size is looked at before anything in it
        (Txn((Compare(b"", 0, 0, 0),), (None,) * 129), TooManyOps),
        (Txn((Compare(b"", 0, 0, 0),), (None,)), EmptyKey),
        (Txn((), (None,)), KeyNotFound),
        (Txn((), (), (None,)), KeyNotFound),
        (Txn((), (Range(b""), None)), EmptyKey),
        (Txn((), (None, Range(b""))), KeyNotFound),
        (Txn((), (Put(b"a", b"x", ignore_value=True), Range(b""))), ValueProvided),
        (Txn((), (DeleteRange(b""),)), EmptyKey),
        (Txn((), (Range(b"a", sort_target=7),)), InvalidSortOption),
        (Txn((), (Txn((), (), (Put(b""),)),)), EmptyKey),
        # a child has what its parent leaves
        (Txn((), (Txn((), (Range(b"a"),) * 128),)), TooManyOps),
        (Txn((COMPARE,) * 100, (Txn((), (Range(b"a"),) * 29),)), TooManyOps),
        (nested(128), TooManyOps),
        # overlaps are looked at last
        (Txn((), (Put(b"a"), Put(b"a")), (None,)), KeyNotFound),
    ],
)
def test_the_first_fault_is_the_one_reported(txn, error) -> None:
    with pytest.raises(error):
        check_txn(txn)


@pytest.mark.parametrize(
    "txn",
    [
        Txn((COMPARE,) * 128, (Range(b"a"),) * 128, (Range(b"a"),) * 128),
        Txn((), (Txn((), (Range(b"a"),) * 127),)),
        nested(127),
        nested(1, 64),
    ],
)
def test_what_is_just_within_the_limit(txn) -> None:
    check_txn(txn)
    with pytest.raises(TooManyOps):
        check_txn(txn, 127)


def test_a_larger_limit_does_not_allow_any_depth() -> None:
    """What passes here must also pass through the envelope, or it would stop every member."""
    deepest = nested(128)
    check_txn(deepest, 10_000)
    assert decode(encode(deepest)) == deepest
    with pytest.raises(TooManyOps):
        check_txn(nested(129), 10_000)


A, B, M = Put(b"a"), Put(b"b"), Put(b"m")


def branch(*operations) -> Txn:
    return Txn((), operations)


@pytest.mark.parametrize(
    ("operations", "legal"),
    [
        ((A, B), True),
        ((A, A), False),
        ((A, DeleteRange(b"a")), False),
        ((DeleteRange(b"a"), A), False),
        ((DeleteRange(b"a", b"b"), B), True),
        ((DeleteRange(b"a", b"c"), B), False),
        ((DeleteRange(b"b", b"a"), B), True),
        ((DeleteRange(b"a"), DeleteRange(b"a"), DeleteRange(b"a", b"z")), True),
        ((DeleteRange(b"a", OPEN_END), B), True),  # etcd's oversight, kept
        ((DeleteRange(OPEN_END, OPEN_END), B), True),
        # nested: children against this level, whatever the order
        ((A, branch(A)), False),
        ((branch(A), A), False),
        ((A, branch(B)), True),
        ((DeleteRange(b"a", b"z"), branch(M)), False),
        ((branch(DeleteRange(b"a", b"z")), M), False),
        # the two branches of one child exclude each other
        ((Txn((), (A,), (A,)),), True),
        ((Txn((), (A,), (DeleteRange(b"a"),)),), True),
        ((Txn((), (A,), (A,)), A), False),
        ((Txn((), (A,), (A,)), branch(A)), False),
        ((Txn((), (), (A,)), Txn((), (), (A,))), False),
        # children among each other: a later child must not put what an earlier one deletes
        ((branch(DeleteRange(b"a")), branch(A)), False),
        ((branch(A), branch(DeleteRange(b"a"))), True),
        ((branch(branch(A)), branch(branch(B))), True),
        ((branch(branch(A)), branch(branch(A))), False),
        ((branch(A, A),), False),
    ],
)
def test_no_key_is_put_twice_nor_put_and_deleted(operations, legal) -> None:
    for txn in (Txn((), operations), Txn((), (), operations)):
        if legal:
            check_txn(txn)
        else:
            with pytest.raises(DuplicateKey):
                check_txn(txn)


def test_the_two_branches_of_the_request_exclude_each_other() -> None:
    check_txn(Txn((), (A, DeleteRange(b"b")), (A, B)))
    with pytest.raises(DuplicateKey):
        check_txn(Txn((), (A, DeleteRange(b"b"), B), ()))
