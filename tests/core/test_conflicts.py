"""Logs that diverged are made equal, fast, and never at the cost of what was committed."""

from __future__ import annotations

import pytest

from raft.core import ConfState, Entry, EntryKind, HardState, MessageType
from raft.core.log import Log
from raft.core.types import EMPTY_SNAPSHOT


def _entries(terms, start=1):
    return [
        Entry(term, index, EntryKind.NORMAL, b"%d/%d" % (term, index))
        for index, term in enumerate(terms, start)
    ]


LEADER = [1, 1, 1, 4, 4, 5, 5, 6, 6, 6]

FIGURE_7 = {
    "a": [1, 1, 1, 4, 4, 5, 5, 6, 6],
    "b": [1, 1, 1, 4],
    "c": [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6],
    "d": [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7],
    "e": [1, 1, 1, 4, 4, 4, 4],
    "f": [1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3],
}


def _pair(empty_network, leader_terms, follower_terms, term=8):
    """A leader-to-be 1, the follower 2, and 3, whose vote makes 1 win whatever 2 thinks."""
    network = empty_network(1)
    conf = ConfState(voters=(1, 2, 3))
    for member, terms in ((1, leader_terms), (2, follower_terms), (3, [])):
        network.add(member, conf, entries=_entries(terms), hard_state=HardState(term, 0, 0))
    network.partition([1, 3], [2])
    network.elect(1)
    network.heal()
    return network


@pytest.mark.parametrize("scenario", FIGURE_7)
def test_figure_7(empty_network, scenario):
    network = _pair(empty_network, LEADER, FIGURE_7[scenario])
    probes = []
    network.drop = lambda m: bool(m.type is MessageType.APPEND and m.to == 2 and probes.append(m))
    network.run_ticks(3)
    assert network.log(2) == network.log(1)
    assert len(probes) <= 6, "no more than a few round trips"


def test_a_long_divergent_tail_is_skipped_term_by_term(empty_network):
    network = _pair(empty_network, [1] * 10 + [4] * 300, [1] * 10 + [2] * 200 + [3] * 200)
    rejections = []
    network.drop = lambda m: bool(m.type is MessageType.APPEND_RESPONSE and m.reject and rejections.append(m))
    network.run_ticks(3)
    assert network.log(2) == network.log(1)
    assert len(rejections) <= 3


def test_both_sides_skip(empty_network):
    """The follower's hint names an entry the leader must search below, and the other way round."""
    network = _pair(empty_network, [1, 3, 3, 3, 5, 5, 5, 5, 5], [1, 1, 1, 1, 4, 4, 4, 4, 4])
    rejections = []
    network.drop = lambda m: bool(m.type is MessageType.APPEND_RESPONSE and m.reject and rejections.append(m))
    network.run_ticks(3)
    assert network.log(2) == network.log(1)
    assert len(rejections) <= 2


def test_figure_8(empty_network):
    """An entry of an earlier term on a majority is not committed until one of the present term is."""
    network = empty_network(1)
    conf = ConfState(voters=(1, 2, 3, 4, 5))
    for member, terms in ((1, [1, 2]), (2, [1, 2]), (3, [1]), (4, [1]), (5, [1, 3])):
        hard_state = HardState(3, 0, 1)
        network.add(member, conf, entries=_entries(terms), hard_state=hard_state, append_entries_max=1)
    network.isolate(5)

    def loses_the_no_op(message):
        if message.type is not MessageType.APPEND:
            return False
        carries_it = any(entry.term > 3 for entry in message.entries)
        return message.to == 2 or (carries_it and network.core(message.to).last_index >= 2)

    network.drop = loses_the_no_op
    network.elect(1)
    network.run_ticks(3)
    assert [network.log(member)[1:] for member in (1, 3, 4)] == [[(2, 2), (4, 3)], [(2, 2)], [(2, 2)]]
    assert network.core(1)._state.tracker.committed() == 2, "a majority holds entry 2, and the leader knows"
    assert network.core(1).commit == 1, "but by count it is not committed"
    network.drop = lambda message: False
    network.run_ticks(3)
    assert network.core(1).commit == 3, "the entry after it commits both"


def test_a_matching_append_never_shortens_the_log():
    log = Log(EMPTY_SNAPSHOT, _entries([1, 1, 2, 2]), 2, 0)
    assert log.accept(1, 1, _entries([1], start=2), 2) == 2
    assert log.last_index == 4
    assert log.accept(2, 1, _entries([2], start=3), 2) == 3
    assert log.last_index == 4


def test_an_append_about_compacted_entries_is_harmless(cluster):
    network = cluster(2)
    network.elect(1)
    network.propose(1, b"a")
    network[1].take()
    old = network.in_bag(MessageType.APPEND)[0]
    network.quiesce()
    network.propose(1, b"b")
    network.quiesce()
    network[2].compact()
    before = network.log(2), network.core(2).last_index
    network.deliver(old)
    assert (network.log(2), network.core(2).last_index) == before
    network.quiesce()


def test_committed_entries_are_never_truncated():
    log = Log(EMPTY_SNAPSHOT, _entries([1, 1, 1]), 3, 0)
    with pytest.raises(AssertionError, match="committed"):
        log.accept(1, 1, _entries([2], start=2), 3)


@pytest.mark.parametrize("compacted", [0, 3])
def test_guesses_agree_with_a_linear_search(compacted):
    terms = [1, 1, 2, 2, 2, 5, 5, 8]
    log = Log(EMPTY_SNAPSHOT, _entries(terms), 8, 8)
    log.compact(compacted)
    for index in range(compacted, 12):
        for term in range(10):
            if index > log.last_index:
                expected = (index, 0)
            else:
                held = range(index, compacted - 1, -1)
                fitting = (i for i in held if (log.term_at(i) or 0) <= term)
                found = next(fitting, None)
                expected = (max(compacted - 1, 0), 0) if found is None else (found, log.term_at(found) or 0)
            assert log.guess_agreement(index, term) == expected, (index, term)
