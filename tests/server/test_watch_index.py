"""Who watches a key, against a list of everybody."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.watch.watch_index import WatchIndex, _stab

KEYS = st.binary(max_size=2).map(lambda key: key or b"a")
INTERVALS = st.tuples(KEYS, st.one_of(st.just(b""), st.just(b"\0"), KEYS)).filter(
    lambda interval: interval[1] in (b"", b"\0") or interval[1] > interval[0]
)


def holds(key: bytes, low: bytes, end: bytes) -> bool:
    if not end:
        return key == low
    return low <= key and (end == b"\0" or key < end)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(INTERVALS, st.integers(0, 12)), max_size=30), st.lists(KEYS, min_size=1, max_size=8)
)
def test_it_finds_what_a_list_finds(steps, keys) -> None:
    index: WatchIndex[int] = WatchIndex()
    everybody: dict[int, tuple[bytes, bytes]] = {}
    for interval, watcher in steps:
        if watcher in everybody:
            index.remove(*everybody.pop(watcher), watcher)
        else:
            everybody[watcher] = interval
            index.add(*interval, watcher)
    for key in keys:
        expected = sorted(w for w, interval in everybody.items() if holds(key, *interval))
        assert sorted(w for group in index.find(key) for w in group) == expected
    for watcher, interval in everybody.items():
        index.remove(*interval, watcher)
    assert not any(index.find(key) for key in keys)


def test_a_look_up_visits_few_of_many_ranges() -> None:
    index: WatchIndex[int] = WatchIndex()
    rng = random.Random(1)
    for number in range(10_000):
        low = b"%08d" % rng.randrange(10**8)
        index.add(low, low + b"~", number)
    depth, level = 0, [index._root]
    while level:
        depth += 1
        level = [child for node in level for child in (node.left, node.right) if child is not None]
    assert depth < 60, "the tree has lost its balance"
    found: list = []
    _stab(index._root, b"5", found)
    assert found == []
