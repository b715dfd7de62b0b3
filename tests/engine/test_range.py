"""Range with every option (reference: etcd v3 API, range)."""

from __future__ import annotations

import pytest

from kvstore.engine import OPEN_END, SortOrder, SortTarget
from kvstore.errors import Compacted, EmptyKey, FutureRevision, InvalidSortOption

KEYS = [b"a", b"b", b"c", b"d"]


@pytest.fixture
def filled(shell):
    """create, mod, version, value: a 2 8 3 "z", b 3 7 2 "y", c 4 4 1 "x", d 5 5 1 "x"."""
    for key, value in (
        (b"a", b"1"),
        (b"b", b"1"),
        (b"c", b"x"),
        (b"d", b"x"),
        (b"a", b"2"),
        (b"b", b"y"),
        (b"a", b"z"),
    ):
        shell.put(key, value)
    return shell


@pytest.mark.parametrize(
    ("key", "range_end", "expected"),
    [
        (b"b", b"", [b"b"]),
        (b"bb", b"", []),
        (b"b", b"d", [b"b", b"c"]),
        (b"b", OPEN_END, [b"b", b"c", b"d"]),
        (OPEN_END, OPEN_END, KEYS),
        (b"d", b"a", []),
        (b"b", b"b", []),
        (b"\xff", OPEN_END, []),
    ],
)
def test_the_interval(filled, key, range_end, expected) -> None:
    result = filled.range(key, range_end)
    assert [kv.key for kv in result.kvs] == expected
    assert (result.count, result.more, result.revision) == (len(expected), False, 8)


def test_keys_sort_by_bytes(shell) -> None:
    keys = [b"a", b"a\0", b"a\0\0", b"a\0\xff", b"a\x01", b"aa", b"\xff", b"\xff\xff"]
    for key in reversed(keys):
        shell.put(key)
    assert shell.keys() == keys


@pytest.mark.parametrize(
    ("limit", "expected", "more"),
    [(0, 4, False), (1, 1, True), (3, 3, True), (4, 4, False), (9, 4, False), (-1, 4, False)],
)
@pytest.mark.parametrize("order", [SortOrder.NONE, SortOrder.ASCEND])
@pytest.mark.parametrize("revision", [0, 7])
def test_limit_and_more_leave_the_count_alone(filled, limit, expected, more, order, revision) -> None:
    result = filled.range(b"\0", b"\0", limit=limit, sort_order=order, revision=revision)
    assert [kv.key for kv in result.kvs] == KEYS[:expected]
    assert (result.more, result.count) == (more, 4)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"min_mod_revision": 5}, b"abd"),
        ({"max_mod_revision": 5}, b"cd"),
        ({"min_mod_revision": 5, "max_mod_revision": 7}, b"bd"),
        ({"min_create_revision": 4}, b"cd"),
        ({"max_create_revision": 3}, b"ab"),
        ({"min_create_revision": 3, "max_create_revision": 4}, b"bc"),
        ({"min_create_revision": 3, "max_mod_revision": 5}, b"cd"),
        ({"max_mod_revision": 1}, b""),
        ({"max_mod_revision": -1}, b""),
        ({"min_mod_revision": -1}, b"abcd"),
        ({"max_mod_revision": 7, "limit": 2}, b"bc"),
    ],
)
def test_filters_are_inclusive_and_leave_the_count_alone(filled, options, expected) -> None:
    result = filled.range(b"\0", b"\0", **options)
    assert b"".join(kv.key for kv in result.kvs) == expected
    assert result.count == 4


@pytest.mark.parametrize(
    ("target", "order", "expected"),
    [
        (SortTarget.KEY, SortOrder.NONE, b"abcd"),
        (SortTarget.KEY, SortOrder.ASCEND, b"abcd"),
        (SortTarget.KEY, SortOrder.DESCEND, b"dcba"),
        (SortTarget.VERSION, SortOrder.ASCEND, b"cdba"),
        (SortTarget.VERSION, SortOrder.DESCEND, b"abcd"),
        (SortTarget.VERSION, SortOrder.NONE, b"cdba"),
        (SortTarget.CREATE, SortOrder.DESCEND, b"dcba"),
        (SortTarget.MOD, SortOrder.ASCEND, b"cdba"),
        (SortTarget.MOD, SortOrder.DESCEND, b"abdc"),
        (SortTarget.VALUE, SortOrder.ASCEND, b"cdba"),
        (SortTarget.VALUE, SortOrder.DESCEND, b"abcd"),
    ],
)
def test_sorting_is_stable(filled, target, order, expected) -> None:
    result = filled.range(b"\0", b"\0", sort_target=target, sort_order=order)
    assert b"".join(kv.key for kv in result.kvs) == expected


def test_a_sort_applies_before_the_limit_but_a_target_alone_only_after_it(filled) -> None:
    sort = {"sort_target": SortTarget.MOD, "limit": 2}
    first = filled.range(b"\0", b"\0", sort_order=SortOrder.ASCEND, **sort)
    assert [kv.key for kv in first.kvs] == [b"c", b"d"]
    # etcd fetches limit + 1 pairs in key order when no order is given, then sorts those.
    second = filled.range(b"\0", b"\0", **sort)
    assert [kv.key for kv in second.kvs] == [b"c", b"b"]
    assert second.more


@pytest.mark.parametrize("target", [SortTarget.KEY, SortTarget.VALUE])
def test_keys_only_keeps_all_but_the_value(filled, target) -> None:
    result = filled.range(b"\0", b"\0", keys_only=True, sort_target=target, sort_order=SortOrder.DESCEND)
    assert [kv.value for kv in result.kvs] == [b""] * 4
    first = result.kvs[0]
    assert first == ((b"d", 5, 5, 1, b"", 0) if target == SortTarget.KEY else (b"a", 2, 8, 3, b"", 0))


@pytest.mark.parametrize(
    ("options", "count"),
    [({}, 4), ({"limit": 1}, 4), ({"max_mod_revision": 3}, 4), ({"revision": 3}, 2), ({"range_end": b""}, 0)],
)
def test_count_only(filled, options, count) -> None:
    result = filled.range(**{"key": b"\0", "range_end": b"\0", "count_only": True, **options})
    assert result == (8, [], False, count)


def test_reading_the_past(filled) -> None:
    filled.delete(b"b")
    filled.put(b"b", b"again")
    filled.delete(b"d")
    history = {
        1: {},
        2: {b"a": b"1"},
        5: {b"a": b"1", b"b": b"1", b"c": b"x", b"d": b"x"},
        6: {b"a": b"2", b"b": b"1", b"c": b"x", b"d": b"x"},
        8: {b"a": b"z", b"b": b"y", b"c": b"x", b"d": b"x"},
        9: {b"a": b"z", b"c": b"x", b"d": b"x"},
        10: {b"a": b"z", b"b": b"again", b"c": b"x", b"d": b"x"},
        11: {b"a": b"z", b"b": b"again", b"c": b"x"},
        0: {b"a": b"z", b"b": b"again", b"c": b"x"},
        -5: {b"a": b"z", b"b": b"again", b"c": b"x"},
    }
    for revision, expected in history.items():
        result = filled.range(b"\0", b"\0", revision=revision)
        assert {kv.key: kv.value for kv in result.kvs} == expected
        assert (result.revision, result.count) == (11, len(expected))
        for key in KEYS:
            alone = filled.range(key, revision=revision)
            assert [kv.value for kv in alone.kvs] == ([expected[key]] if key in expected else [])


def test_revisions_out_of_reach(filled) -> None:
    with pytest.raises(FutureRevision, match="required revision is a future revision"):
        filled.range(b"a", revision=9)
    filled.compact(5)
    assert filled.range(b"a", revision=5).kvs[0].value == b"1"
    with pytest.raises(Compacted, match="required revision has been compacted"):
        filled.range(b"a", revision=4)
    with pytest.raises(Compacted):
        filled.range(b"a", revision=4, count_only=True)
    assert filled.range(b"a", revision=-1).kvs[0].value == b"z"


def test_an_empty_key_is_refused(shell) -> None:
    with pytest.raises(EmptyKey, match=r"^etcdserver: key is not provided$"):
        shell.range(b"", b"\0")


def test_an_unknown_order_is_ignored_and_an_unknown_target_refused(filled) -> None:
    assert filled.keys(sort_order=9, limit=2) == [b"a", b"b"]
    assert filled.keys(sort_order=9, sort_target=9) == KEYS
    with pytest.raises(InvalidSortOption, match=r"^etcdserver: invalid sort option$"):
        filled.keys(sort_target=9)
    with pytest.raises(InvalidSortOption):
        filled.keys(sort_target=9, sort_order=SortOrder.DESCEND)
