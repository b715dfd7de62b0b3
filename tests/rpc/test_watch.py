"""Watch, called without a network: which responses come, in which order, and how requests are refused.

Texts, ids and header revisions are those of etcd (reference: etcd v3 API, watch).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import pytest
from google.protobuf.message import Message

from kvstore.engine import Compact, DeleteRange, Put, Txn, encode
from kvstore.errors import KVError, NoLeader
from kvstore.rpc.call import open_stream, receive
from kvstore.rpc.watch_service import FRAGMENT_OVERHEAD_BYTES
from kvstore.watch import watch_hub, watch_stream
from kvstore.wire import kv_pb2
from kvstore.wire import rpc_pb2 as pb

PATH = "/etcdserverpb.Watch/Watch"
PUT, DELETE = kv_pb2.Event.PUT, kv_pb2.Event.DELETE


class Watching:
    """A member, one call of Watch, and a loop that runs when the test says so."""

    def __init__(self, bench, make_call) -> None:
        self.bench = bench
        self.member = bench.member
        self.queue: deque[Callable[[], None]] = deque()
        self.member.watches.call_soon = self.queue.append
        self.make_call = make_call
        self.call, self.inbound = self.open()

    def open(self, metadata: dict[str, str] | None = None):
        call = self.make_call(metadata)
        return call, open_stream(self.bench.methods[PATH], call)

    def iteration(self) -> None:
        while self.queue:
            self.queue.popleft()()

    def apply(self, *commands) -> None:
        for command in commands:
            (outcome,) = self.bench.engine.apply(1, 1, [encode(command)], True)
            assert not isinstance(outcome, KVError), outcome
        self.member.watches.applied()

    def ask(self, **fields: Message) -> None:
        request = pb.WatchRequest(**fields)
        receive(self.bench.methods[PATH], self.inbound, request.SerializeToString())

    def watch(self, key: bytes = b"", **fields) -> None:
        self.ask(create_request=pb.WatchCreateRequest(key=key, **fields))

    def told(self, call=None) -> list[pb.WatchResponse]:
        """Responses since the last look."""
        self.iteration()
        call = call or self.call
        sent, call.sent = call.sent, []
        return [
            pb.WatchResponse.FromString(m if isinstance(m, bytes) else m.SerializeToString()) for m in sent
        ]

    def events(self) -> list[tuple[int, int, bytes, int]]:
        return [
            (response.watch_id, event.type, event.kv.key, event.kv.mod_revision)
            for response in self.told()
            for event in response.events
        ]


@pytest.fixture
def watching(bench, make_call) -> Watching:
    return Watching(bench, make_call)


def test_created_comes_first_and_then_whole_revisions(watching: Watching) -> None:
    watching.watch(b"a", range_end=b"c", prev_kv=True)
    watching.apply(Put(b"a", b"1"))
    created, event = watching.told()
    assert (created.created, created.watch_id, created.header.revision) == (True, 0, 1)
    assert (event.header.revision, event.watch_id) == (2, 0)
    watching.apply(Put(b"z"), Txn((), (Put(b"b", b"2"), Put(b"c"), DeleteRange(b"a"))))
    (response,) = watching.told()
    assert response.header.revision == 4
    assert response.header.member_id == watching.member.member_id
    assert [(e.type, e.kv.key, e.kv.mod_revision, e.prev_kv.value) for e in response.events] == [
        (PUT, b"b", 4, b""),
        (DELETE, b"a", 4, b"1"),
    ]
    assert not response.events[0].HasField("prev_kv")
    assert not response.events[1].kv.create_revision


def test_a_start_in_the_past_at_present_and_in_the_future(watching: Watching) -> None:
    watching.apply(Put(b"k", b"1"), Put(b"k", b"2"), Put(b"other"), Put(b"k", b"3"))
    watching.watch(b"k", start_revision=2, prev_kv=True)
    created, past = watching.told()
    assert (created.header.revision, past.header.revision) == (5, 5)
    assert [(e.kv.mod_revision, e.prev_kv.value) for e in past.events] == [(2, b""), (3, b"1"), (5, b"2")]
    watching.watch(b"k", start_revision=5)
    created, present = watching.told()
    assert [(e.kv.mod_revision, e.HasField("prev_kv")) for e in present.events] == [(5, False)]
    watching.watch(b"k", start_revision=8)
    watching.told()
    watching.apply(Put(b"k"), Put(b"k"))
    assert [event[0] for event in watching.events()] == [0, 0, 1, 1]
    watching.apply(Put(b"k"))
    assert watching.events() == [(0, PUT, b"k", 8), (1, PUT, b"k", 8), (2, PUT, b"k", 8)]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"key": b"q", "range_end": b"a"}, "mvcc: watcher range is empty"),
        ({"key": b"q", "range_end": b"q"}, "mvcc: watcher range is empty"),
        ({"key": b"q", "start_revision": -3}, "etcdserver: mvcc: required revision has been compacted"),
    ],
)
def test_refusals_use_no_id(watching: Watching, fields, reason: str) -> None:
    watching.watch(**fields)
    watching.watch(b"fine")
    refused, fine = watching.told()
    assert (refused.watch_id, refused.created, refused.canceled) == (-1, True, True)
    assert refused.cancel_reason == reason
    assert (fine.watch_id, fine.canceled) == (0, False)


def test_ids(watching: Watching) -> None:
    for watch_id in (0, 7, 7, 0, 1, -5, -5, 0):
        watching.watch(b"k", watch_id=watch_id)
    duplicate = "mvcc: duplicate watch ID provided on the WatchStream"
    assert [(r.watch_id, r.created, r.canceled, r.cancel_reason) for r in watching.told()] == [
        (0, True, False, ""),
        (7, True, False, ""),
        (-1, True, True, duplicate),
        (1, True, False, ""),
        (-1, True, True, duplicate),
        (-5, True, False, ""),
        (-1, True, True, duplicate),
        (2, True, False, ""),
    ]


def test_an_empty_key_is_the_first_key_and_an_open_end_is_everything_behind(watching: Watching) -> None:
    watching.watch(b"")
    watching.watch(b"", range_end=b"\0")
    watching.watch(b"m", range_end=b"\0")
    watching.told()
    watching.apply(Put(b"\0"), Put(b"a"), Put(b"m"))
    assert sorted(watching.events()) == [
        (0, PUT, b"\0", 2),
        (1, PUT, b"\0", 2),
        (1, PUT, b"a", 3),
        (1, PUT, b"m", 4),
        (2, PUT, b"m", 4),
    ]


def test_filters_leave_nothing_unsaid_but_what_they_name(watching: Watching) -> None:
    noput, nodelete = pb.WatchCreateRequest.NOPUT, pb.WatchCreateRequest.NODELETE
    for filters in ([], [noput], [nodelete], [noput, nodelete]):
        watching.watch(b"k", filters=filters)
    watching.told()
    watching.apply(Put(b"k"), DeleteRange(b"k"))
    assert sorted(watching.events()) == [
        (0, PUT, b"k", 2),
        (0, DELETE, b"k", 3),
        (1, DELETE, b"k", 3),
        (2, PUT, b"k", 2),
    ]


def test_a_compacted_start_is_created_and_then_cancelled(watching: Watching) -> None:
    watching.apply(Put(b"k", b"1"), Put(b"k", b"2"), Put(b"k", b"3"), Compact(3))
    watching.watch(b"k", start_revision=2)
    created, cancelled = watching.told()
    assert (created.created, created.canceled, created.watch_id) == (True, False, 0)
    assert (cancelled.canceled, cancelled.compact_revision, cancelled.watch_id) == (True, 3, 0)
    assert (cancelled.header.revision, cancelled.cancel_reason) == (0, "")
    watching.watch(b"k", start_revision=3, prev_kv=True)
    _, events = watching.told()
    assert [(e.kv.mod_revision, e.prev_kv.value) for e in events.events] == [(3, b""), (4, b"2")]
    # Until its caller cancels it, the id is taken.
    watching.watch(b"k", watch_id=0)
    assert watching.told()[0].watch_id == 2
    watching.ask(cancel_request=pb.WatchCancelRequest(watch_id=0))
    (answer,) = watching.told()
    assert (answer.canceled, answer.watch_id, answer.compact_revision) == (True, 0, 0)


def test_a_deletion_at_the_compacted_revision_is_still_told(watching: Watching) -> None:
    watching.apply(Put(b"k"), DeleteRange(b"k"), Put(b"other"), Compact(3))
    watching.apply(Put(b"other"))
    watching.watch(b"k", start_revision=3)
    assert watching.events() == [(0, DELETE, b"k", 3)]


def test_cancel(watching: Watching) -> None:
    watching.watch(b"k")
    watching.told()
    watching.apply(Put(b"k"))
    watching.ask(cancel_request=pb.WatchCancelRequest(watch_id=0))
    watching.ask(cancel_request=pb.WatchCancelRequest(watch_id=0))
    watching.ask(cancel_request=pb.WatchCancelRequest(watch_id=9))
    (answer,) = watching.told()
    assert (answer.watch_id, answer.canceled, answer.created, answer.header.revision) == (0, True, False, 2)
    assert watching.member.watches.watcher_count == 0
    watching.watch(b"k", watch_id=0)
    assert watching.told()[0].watch_id == 1


def test_a_chosen_id_is_none_that_somebody_asked_for(watching: Watching) -> None:
    for asked in (1, 0, 0):
        watching.watch(b"k", watch_id=asked)
    assert [response.watch_id for response in watching.told()] == [1, 0, 2]


def test_progress_is_told_behind_the_events_and_only_when_all_are_synced(watching: Watching) -> None:
    progress = {"progress_request": pb.WatchProgressRequest()}
    watching.ask(**progress)
    assert not watching.told()
    watching.watch(b"k")
    watching.told()
    watching.apply(Put(b"k"))
    watching.ask(**progress)
    event, answer = watching.told()
    assert event.events
    assert (answer.watch_id, answer.header.revision, len(answer.events)) == (-1, 2, 0)
    watching.watch(b"k", start_revision=1)  # it reads its past first
    watching.ask(**progress)
    _, past, answer = watching.told()
    assert past.events
    assert answer.watch_id == -1
    watching.watch(b"k", start_revision=4)
    watching.ask(**progress)
    assert [response.created for response in watching.told()] == [True]
    watching.apply(Put(b"x"), Put(b"x"))
    watching.ask(**progress)
    assert [(r.watch_id, r.header.revision) for r in watching.told()] == [(-1, 4)]


def test_progress_by_interval_skips_those_who_were_told_something(watching: Watching) -> None:
    watching.inbound._plan_tick = lambda: None  # no loop runs here; ticks are made by hand
    watching.watch(b"k", progress_notify=True)
    watching.watch(b"j", progress_notify=True)
    watching.watch(b"j", progress_notify=True, start_revision=100)
    watching.watch(b"j")
    watching.told()
    watching.apply(Put(b"k"))
    watching.told()
    watching.inbound._tick()
    assert [(r.watch_id, r.header.revision) for r in watching.told()] == [(1, 2)]
    watching.inbound._tick()
    assert [(r.watch_id, r.header.revision) for r in watching.told()] == [(0, 2), (1, 2)]


def test_large_responses_are_split_when_asked_for(watching: Watching) -> None:
    size = FRAGMENT_OVERHEAD_BYTES
    watching.watch(b"", range_end=b"\0", fragment=True)
    watching.watch(b"", range_end=b"\0")
    watching.told()
    keys = [b"%d" % number for number in range(9)]
    watching.apply(Txn((), tuple(Put(key, bytes(size)) for key in keys)))
    responses = watching.told()
    fragments = [response for response in responses if response.watch_id == 0]
    (whole,) = (response for response in responses if response.watch_id == 1)
    assert [len(response.events) for response in fragments] == [3, 3, 3]
    assert [response.fragment for response in fragments] == [True, True, False]
    assert [e.kv.key for response in fragments for e in response.events] == keys
    assert (len(whole.events), whole.fragment) == (9, False)
    assert all(response.header.revision == 2 for response in responses)


def test_a_caller_that_reads_nothing_costs_its_bound_and_misses_nothing(watching: Watching) -> None:
    watching.watch(b"a", range_end=b"b", prev_kv=True)
    watching.told()
    watching.call.has_space = False
    value = bytes(1000)
    hub = watching.member.watches
    for number in range(3000):
        watching.apply(Put(b"a%d" % (number % 10), value))
        watching.iteration()
        assert hub.pending_bytes <= watch_hub.WATCHER_PENDING_BYTES_MAX
    assert hub.unsynced == 1
    assert not watching.call.sent
    told = []
    while len(told) < 3000:
        watching.call.drain()
        part = watching.told()
        assert part, "stuck"
        assert hub.pending_bytes <= watch_hub.WATCHER_PENDING_BYTES_MAX
        told += [event for response in part for event in response.events]
    assert [event.kv.mod_revision for event in told] == list(range(2, 3002))
    assert all(event.HasField("prev_kv") for event in told[10:])
    assert hub.unsynced == 0
    watching.apply(Put(b"a"))
    assert watching.events() == [(0, PUT, b"a", 3002)]


def test_compaction_passes_one_who_does_not_read(watching: Watching, monkeypatch) -> None:
    monkeypatch.setattr(watch_hub, "WATCHER_PENDING_BYTES_MAX", 1000)
    watching.watch(b"k")
    watching.told()
    watching.call.has_space = False
    watching.apply(*(Put(b"k", bytes(200)) for _ in range(20)))
    assert watching.member.watches.unsynced == 1
    watching.apply(Compact(15))
    watching.call.drain()
    responses = watching.told()
    assert [(r.canceled, r.compact_revision) for r in responses if not r.events] == [(True, 15)]


def test_who_asks_and_does_not_read_is_not_heard_for_a_while(watching: Watching, monkeypatch) -> None:
    monkeypatch.setattr(watch_stream, "ANSWERS_WAITING_MAX", 3)
    watching.call.has_space = False
    for _ in range(3):
        assert not watching.call.held
        watching.watch(b"k")
    assert watching.call.held
    watching.call.drain()
    assert not watching.call.held
    assert len(watching.told()) == 3


def test_watchers_of_other_keys_are_not_touched(watching: Watching) -> None:
    hub = watching.member.watches
    for number in range(300):
        watching.watch(b"k%d" % number)
        watching.watch(b"p%d/" % number, range_end=b"p%d0" % number)
        watching.watch(b"z%d" % number, range_end=b"\0")
    watching.told()
    watching.apply(Put(b"a"), Put(b"m"), Put(b"k"), Put(b"p"))
    assert hub.touched == 0
    watching.apply(Put(b"k7"), Put(b"p7/x"))
    assert hub.touched == 2
    assert sorted(watching.events()) == [(21, PUT, b"k7", 6), (22, PUT, b"p7/x", 7)]


def test_calls_that_ask_for_a_leader_end_without_one(watching: Watching) -> None:
    call, _ = watching.open({"hasleader": "true"})
    watching.member.leader_loss._lost()
    assert isinstance(call.result, NoLeader)
    assert watching.call.result is None
    watching.bench.node.leader = 0
    with pytest.raises(NoLeader):
        watching.open({"hasleader": "true"})
    watching.open()


def test_a_caller_that_leaves_leaves_nothing_behind(watching: Watching) -> None:
    hub = watching.member.watches
    for start in (0, 1, 9):
        watching.watch(b"k", start_revision=start)
    assert (hub.watcher_count, hub.streams) == (3, 1)
    watching.call.mark_gone()
    assert (hub.watcher_count, hub.streams, hub.unsynced, hub.pending_bytes) == (0, 0, 0, 0)
    assert not watching.bench.engine.observing
    watching.iteration()
    assert not watching.call.sent


def test_one_who_stops_asking_is_still_told(watching: Watching) -> None:
    watching.watch(b"k")
    receive(watching.bench.methods[PATH], watching.inbound, None)
    watching.told()
    watching.apply(Put(b"k"))
    assert watching.events() == [(0, PUT, b"k", 2)]
    assert not watching.call.finished
