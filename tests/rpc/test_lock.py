"""v3lockpb.Lock: FIFO, cancellation, dead leases, texts, and a naive model of the queue."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvstore.engine import OPEN_END, DeleteRange, LeaseGrant, LeaseRevoke, Put, Range, encode
from kvstore.errors import KVError, LeaseNotFound
from kvstore.lease import lock_queue
from kvstore.testing import run_virtual
from kvstore.wire import rpc_pb2, v3lock_pb2
from raft.node import NoLeader, OutcomeUnknown

LOCK, UNLOCK = "/v3lockpb.Lock/Lock", "/v3lockpb.Lock/Unlock"


class Locking:
    """A member of one whose applied changes wake who waits."""

    def __init__(self, bench) -> None:
        self.bench = bench
        bench.node.on_applied = bench.member.watches.applied
        bench.member.lessor.start(
            loop=asyncio.get_running_loop(), rng=random.Random(1), election_timeout_ms=1000
        )

    def apply(self, command) -> None:
        self.bench.node.propose(encode(command), lambda outcome, error: None)

    def lock(self, lease: int, name: bytes = b"n"):
        return self.bench.begin(LOCK, v3lock_pb2.LockRequest(name=name, lease=lease))

    def unlock(self, key: bytes):
        return self.bench.call(UNLOCK, v3lock_pb2.UnlockRequest(key=key))

    async def quiesce(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)

    def keys(self) -> list[bytes]:
        return [pair.key for pair in self.bench.engine.range(Range(b"\0", OPEN_END)).kvs]


def play(bench, scenario: Callable[[Locking], object]) -> None:
    async def main() -> None:
        locking = Locking(bench)
        try:
            for lease in range(1, 6):
                locking.apply(LeaseGrant(lease, 60))
            await scenario(locking)
        finally:
            locking.bench.member.lessor.stop()

    run_virtual(main())


def refusal(call) -> tuple[int, str]:
    assert isinstance(call.result, KVError)
    return int(call.result.code), call.result.text


def test_holders_follow_one_another_in_order_woken_by_the_deletion(bench) -> None:
    async def scenario(locking: Locking) -> None:
        calls = [locking.lock(lease) for lease in (3, 1, 2)]
        await locking.quiesce()
        assert calls[0].result.key == b"n/3"
        assert calls[0].result.header.revision == 2
        assert [call.result for call in calls[1:]] == [None, None]
        for number, key in enumerate((b"n/3", b"n/1")):
            proposed = bench.node.index
            locking.unlock(key)
            await locking.quiesce()
            assert bench.node.index == proposed + 1, "a release and the next grant cost one proposal"
            assert calls[number + 1].result.header.revision == 5 + number
        assert [call.result.key for call in calls] == [b"n/3", b"n/1", b"n/2"]
        assert bench.member.watches.watcher_count == 0

    play(bench, scenario)


def test_the_same_lease_locks_again_at_once(bench) -> None:
    async def scenario(locking: Locking) -> None:
        first, again = locking.lock(1), locking.lock(1)
        assert first.result == again.result
        assert locking.keys() == [b"n/1"]

    play(bench, scenario)


def test_a_caller_that_leaves_leaves_the_queue(bench) -> None:
    async def scenario(locking: Locking) -> None:
        holder, leaving, last = (locking.lock(lease) for lease in (1, 2, 3))
        leaving.mark_gone()
        assert locking.keys() == [b"n/1", b"n/3"]
        locking.unlock(holder.result.key)
        await locking.quiesce()
        assert last.result.key == b"n/3"
        assert bench.member.watches.watcher_count == 0

    play(bench, scenario)


def test_a_caller_that_leaves_while_its_key_is_on_its_way(bench) -> None:
    async def scenario(locking: Locking) -> None:
        bench.node.held = []
        call = locking.lock(1)
        call.mark_gone()
        held, bench.node.held = bench.node.held, None
        for act in held:
            act()
        assert locking.keys() == []

    play(bench, scenario)


def test_a_waiter_whose_lease_died_is_not_told_that_it_holds(bench) -> None:
    async def scenario(locking: Locking) -> None:
        holder, waiter = locking.lock(1), locking.lock(2)
        locking.apply(LeaseRevoke(2))
        locking.unlock(holder.result.key)
        await locking.quiesce()
        assert refusal(waiter) == (2, "mutex: session is expired")

    play(bench, scenario)


def test_a_waiting_call_keeps_alive_nothing_and_the_callers_own_keep_alives_count(bench) -> None:
    async def scenario(locking: Locking) -> None:
        lessor = locking.bench.member.lessor
        for lease in (6, 7):
            locking.apply(LeaseGrant(lease, 3))
        holder, left, kept = (locking.lock(lease) for lease in (1, 6, 7))
        for _ in range(9):
            await asyncio.sleep(1)
            lessor.keep_alive(7, lambda _: None)
        assert locking.keys() == [b"n/1", b"n/7"]
        assert (left.result, kept.result) == (None, None)
        locking.unlock(holder.result.key)
        await locking.quiesce()
        assert refusal(left) == (2, "mutex: session is expired")
        assert kept.result.key == b"n/7"

    play(bench, scenario)


def test_a_lease_that_dies_during_the_last_confirmation_is_detected(bench) -> None:
    async def scenario(locking: Locking) -> None:
        holder, waiter = locking.lock(1), locking.lock(2)
        locking.unlock(holder.result.key)
        bench.node.held = []
        await locking.quiesce()
        assert waiter.result is None, "no round has confirmed the state yet"
        held, bench.node.held = bench.node.held, None
        locking.apply(LeaseRevoke(2))
        for act in held:
            act()
        assert refusal(waiter) == (2, "mutex: session is expired")

    play(bench, scenario)


def test_the_texts_are_etcds_and_have_lost_their_codes(bench) -> None:
    async def scenario(locking: Locking) -> None:
        assert refusal(locking.lock(99)) == (2, LeaseNotFound.text)
        call = bench.begin(UNLOCK, v3lock_pb2.UnlockRequest())
        assert refusal(call) == (2, "etcdserver: key is not provided")
        assert locking.unlock(b"no such key").header.revision == 1
        bench.node.error = NoLeader("no leader")
        assert refusal(locking.lock(1))[0] == 14

    play(bench, scenario)


def test_an_unknown_outcome_undoes_nothing(bench) -> None:
    async def scenario(locking: Locking) -> None:
        bench.node.error = OutcomeUnknown("?")
        call = locking.lock(1)
        assert refusal(call)[0] == 14
        bench.node.error = None
        assert bench.node.index == 5, "a deletion might take the lock from a retry elsewhere"

    play(bench, scenario)


def test_without_a_lease_the_lock_lasts_a_minute(bench) -> None:
    async def scenario(locking: Locking) -> None:
        call = locking.lock(0)
        (lease,) = [lease for lease in bench.engine.leases.ids() if lease > 5]
        assert call.result.key == b"n/%x" % lease
        assert bench.engine.leases.find(lease).ttl_seconds == 60
        await asyncio.sleep(61)
        assert locking.keys() == []

    play(bench, scenario)


def test_waiters_are_bounded(bench, monkeypatch) -> None:
    monkeypatch.setattr(lock_queue, "WAITERS_MAX", 2)

    async def scenario(locking: Locking) -> None:
        locking.lock(1)
        waiting = [locking.lock(2), locking.lock(3)]
        assert refusal(locking.lock(4)) == (2, "etcdserver: too many requests")
        waiting[0].mark_gone()
        assert locking.lock(4).result is None

    play(bench, scenario)


def test_keys_of_other_clients_exclude_ours(bench) -> None:
    async def scenario(locking: Locking) -> None:
        bench.call("/etcdserverpb.KV/Put", rpc_pb2.PutRequest(key=b"n/other"))
        call = locking.lock(1)
        assert call.result is None
        bench.call("/etcdserverpb.KV/DeleteRange", rpc_pb2.DeleteRangeRequest(key=b"n/other"))
        await locking.quiesce()
        assert call.result.key == b"n/1"

    play(bench, scenario)


NAMES = st.sampled_from([b"n", b"m"])
LEASES = st.integers(1, 4)
STEPS = st.one_of(
    st.tuples(st.just("lock"), NAMES, LEASES),
    st.tuples(st.just("lock"), NAMES, LEASES),
    st.tuples(st.just("unlock"), NAMES, LEASES),
    st.tuples(st.just("unlock first"), NAMES, LEASES),
    st.tuples(st.just("cancel"), NAMES, st.integers(0, 5)),
    st.tuples(st.just("revoke"), NAMES, LEASES),
    st.tuples(st.just("grant"), NAMES, LEASES),
    st.tuples(st.just("put"), NAMES, LEASES),
)


class Model:
    """A dict of keys with their creation and lease, and a list of calls that look at it."""

    def __init__(self) -> None:
        self.revision = 1
        self.keys: dict[bytes, tuple[int, int]] = {}
        self.leases = {1, 2, 3, 4, 5}
        self.calls: list[tuple[object, bytes, bytes, int]] = []
        """Call, name, its key and when that was created, for those that wait."""
        self.expected: dict[int, str] = {}
        """By identity of the call."""

    def put(self, key: bytes, lease: int) -> None:
        self.revision += 1
        created = self.keys[key][0] if key in self.keys else self.revision
        self.keys[key] = (created, lease)

    def delete(self, keys: list[bytes]) -> None:
        gone = [key for key in keys if key in self.keys]
        self.revision += bool(gone)
        for key in gone:
            del self.keys[key]

    def first(self, name: bytes) -> bytes:
        positions = {created: key for key, (created, _) in self.keys.items() if key.startswith(name + b"/")}
        return positions[min(positions)] if positions else b""

    def look(self) -> None:
        """A waiter with nothing left to wait for gets an answer: it holds, or its entry is gone."""
        for entry in list(self.calls):
            call, name, key, created = entry
            before = [k for k, (c, _) in self.keys.items() if k.startswith(name + b"/") and c < created]
            if not before:
                self.calls.remove(entry)
                held = key in self.keys and self.keys[key][0] == created
                self.expected[id(call)] = "held" if held else "mutex: session is expired"


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(STEPS, max_size=30))
def test_the_queue_does_what_a_naive_one_does(make_bench, steps) -> None:
    async def scenario(locking: Locking) -> None:
        model = Model()
        made = []
        for step, name, number in steps:
            key = name + b"/%x" % number
            if step == "lock":
                call = locking.lock(number, name)
                made.append(call)
                if number not in model.leases and key not in model.keys:
                    model.expected[id(call)] = LeaseNotFound.text
                else:
                    if key not in model.keys:
                        model.put(key, number)
                    model.calls.append((call, name, key, model.keys[key][0]))
            elif step == "unlock":
                locking.unlock(key)
                model.delete([key])
            elif step == "unlock first":
                key = model.first(name)
                if key:
                    locking.unlock(key)
                    model.delete([key])
            elif step == "cancel" and number < len(model.calls):
                entry = model.calls.pop(number)
                entry[0].mark_gone()
                model.expected[id(entry[0])] = "left"
                if entry[2] in model.keys and model.keys[entry[2]][0] == entry[3]:
                    model.delete([entry[2]])
            elif step == "revoke" and number in model.leases:
                locking.apply(LeaseRevoke(number))
                model.leases.remove(number)
                model.delete([k for k, (_, lease) in model.keys.items() if lease == number])
            elif step == "grant" and number not in model.leases:
                locking.apply(LeaseGrant(number, 60))
                model.leases.add(number)
            elif step == "put":
                third_party = name + b"/x%d" % number
                locking.apply(Put(third_party) if number % 2 else DeleteRange(third_party))
                if number % 2:
                    model.put(third_party, 0)
                else:
                    model.delete([third_party])
            model.look()
            await locking.quiesce()
            for call in made:
                wanted = model.expected.get(id(call))
                if wanted in (None, "left"):
                    assert call.result is None
                elif wanted == "held":
                    assert isinstance(call.result, v3lock_pb2.LockResponse)
                else:
                    assert refusal(call)[1] == wanted
            assert locking.keys() == sorted(model.keys)
            assert locking.bench.engine.revision == model.revision
        assert locking.bench.member.watches.watcher_count == len(model.calls)

    play(make_bench(), scenario)


def test_an_entry_beyond_the_quota_is_refused_and_not_counted(make_bench, monkeypatch) -> None:
    monkeypatch.setattr(lock_queue, "WAITERS_MAX", 1)

    async def scenario(locking: Locking) -> None:
        locking.bench.member.quota.limit_bytes = 1
        for _ in range(2):
            assert refusal(locking.lock(1)) == (2, "etcdserver: mvcc: database space exceeded")
            assert refusal(locking.lock(0)) == (2, "etcdserver: mvcc: database space exceeded")

    play(make_bench(), scenario)
