"""What must wait for the disk waits for the right write."""

from __future__ import annotations

import pytest

from raft.core import (
    BootRefused,
    BootState,
    Config,
    ConfState,
    Entry,
    EntryKind,
    HardState,
    MessageType,
    RaftCore,
    Role,
    SnapshotMeta,
)
from raft.core.log import Log


def test_the_aba_race(cluster):
    """A write overwritten and made again elsewhere must not be counted durable by the first one's completion.

    1 begins to write 1/2; a leader of term 2 replaces it; then a leader of term 3 brings back an entry
    at the same index. Completions of writes handed out in earlier terms do not count for it.
    """
    network = cluster(5, pre_vote=False, withhold_votes=False)
    network.elect(2)
    network.propose(2, b"first")
    network[2].run()
    network.deliver_all(1)
    network[1].take()  # write A: 1/2
    network.isolate(2)
    network.campaign(3)
    network.quiesce(3, 4, 5)
    assert network.core(3).role is Role.LEADER
    network.tick(3)
    network[3].run()
    network.deliver_all(1)
    network[1].take()  # write B: 2/2 replaces it
    assert network.core(1).last_index == 2
    stable = network.core(1).status().stable
    assert stable == 1
    writes = list(network[1].writing)
    assert [entry.term for write in writes for entry in write.entries] == [1, 2]
    network[1].sync()  # A completes, in another term
    assert network.core(1).status().stable == 1
    network[1].sync(len(network[1].writing))
    assert network.core(1).status().stable == 2
    network.quiesce(1, 3, 4, 5)


def test_without_the_term_guard_the_race_is_lost(cluster, monkeypatch):
    """Negative control of the test before."""

    def on_append_done(self, token):
        done, _ = self._writing.popleft()
        self._on_durable(done)

    monkeypatch.setattr(RaftCore, "on_append_done", on_append_done)
    monkeypatch.setattr(Log, "matches", lambda self, index, term: index <= self.last_index)
    with pytest.raises(AssertionError):
        test_the_aba_race(cluster)


def test_a_change_of_term_states_the_last_entry_anew(cluster):
    """Otherwise an entry whose write completed in a later term would never be known durable."""
    network = cluster(3, pre_vote=False, withhold_votes=False)
    network.elect(1)
    network.propose(1, b"a")
    network[1].take()
    network.deliver_all(2)
    network[2].take()
    network.campaign(3)
    network[3].run()
    network.deliver_all(2)  # a vote request: term 2
    network[2].take()
    tokens = [work.token for work in network[2].writing]
    assert [(token.term, token.last_index, token.last_term) for token in tokens] == [(1, 2, 1), (2, 2, 1)]
    network[2].sync()
    assert network.core(2).status().stable == 1
    network[2].sync()
    assert network.core(2).status().stable == 2


def test_acknowledgements_and_rejections_leave_after_the_write(cluster):
    network = cluster(3)
    network.elect(1)
    network.propose(1, b"a")
    network[1].take()
    append = network.in_bag(MessageType.APPEND, to=2)[0]
    network.deliver(append)
    append.index, append.entries = 9, ()
    network[2].do(lambda core: core.step(append))
    ready = network[2].take()
    assert not ready.messages
    assert [(m.type, m.reject) for m in ready.append.responses] == [
        (MessageType.APPEND_RESPONSE, False),
        (MessageType.APPEND_RESPONSE, True),
    ]


def test_acknowledgements_of_one_iteration_become_one(cluster):
    network = cluster(3)
    network.elect(1)
    for data in (b"a", b"b", b"c"):
        network.propose(1, data)
        network[1].take()
    network.deliver_all(2)
    ready = network[2].take()
    assert [m.index for m in ready.append.responses] == [4]


def test_a_moved_commit_index_needs_no_sync_and_waits_for_a_tick(cluster):
    network = cluster(1)
    network.elect(1)
    assert network.core(1).commit == 1
    assert network[1].disk.hard_state.commit == 0
    assert not network.core(1).has_ready()
    network.tick(1)
    ready = network[1].take()
    assert ready.append.hard_state.commit == 1
    assert not ready.append.must_sync


def test_writes_complete_in_order_and_a_later_one_covers_the_earlier(cluster):
    network = cluster(1)
    network.elect(1)
    for data in (b"a", b"b"):
        network.propose(1, data)
        network[1].take()
    first, second = (work.token for work in network[1].writing)
    network[1].do(lambda core: core.on_append_done(second))
    assert network.core(1).commit == 3
    with pytest.raises(AssertionError, match="done"):
        network.core(1).on_append_done(first)


def test_a_ready_is_consumed(cluster):
    network = cluster(3)
    network.elect(1)
    network.propose(1, b"a")
    network[1].take()
    assert not network.core(1).has_ready()
    ready = network.core(1).take_ready()
    assert (ready.messages, ready.append, ready.apply, ready.soft_state) == ([], None, None, None)


def _boot(**changes):
    conf = ConfState(voters=(1, 2, 3))
    entries = [Entry(1, 1, EntryKind.NORMAL, b""), Entry(2, 2, EntryKind.NORMAL, b"")]
    settings = {
        "hard_state": HardState(2, 0, 1),
        "snapshot": SnapshotMeta(0, 0, conf),
        "entries": entries,
        "applied": 0,
        "conf": conf,
    }
    return BootState(**{**settings, **changes})


class _Zero:
    def randrange(self, stop):
        return 0


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"applied": 3}, "applied 3"),
        ({"hard_state": HardState(2, 0, 3)}, "committed 3"),
        ({"hard_state": HardState(1, 0, 0)}, "term 2"),
        ({"entries": [Entry(1, 2, EntryKind.NORMAL, b"")]}, "where"),
        ({"entries": [Entry(2, 1, EntryKind.NORMAL, b""), Entry(1, 2, EntryKind.NORMAL, b"")]}, "where"),
    ],
)
def test_a_disk_that_contradicts_itself_is_refused(changes, text):
    with pytest.raises(BootRefused, match=text):
        RaftCore(Config(member_id=1), _boot(**changes), _Zero())


def test_the_applied_index_may_be_ahead_of_the_written_commit_index():
    core = RaftCore(Config(member_id=1), _boot(applied=2), _Zero())
    assert (core.commit, core.applied) == (2, 2)


@pytest.mark.parametrize(
    "changes", [{"member_id": 0}, {"election_ticks": 1}, {"append_bytes_max": 0}, {"pending_reads_max": -1}]
)
def test_a_config_out_of_range_is_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        RaftCore(Config(**{"member_id": 1, **changes}), _boot(), _Zero())
