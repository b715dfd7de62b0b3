"""Watches in a simulated run: watchers of every kind, and the events that they must receive.

The reference is the history of the first member to apply a revision. Each watcher's events are compared with
it one by one as they arrive, over reconnections, other members, compactions and snapshots.
"""

from __future__ import annotations

import asyncio
import random
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from kvstore.engine import Compact, DeleteRange, Engine, Put, Txn, encode, to_event
from kvstore.errors import KVError
from kvstore.wire import rpc_pb2 as pb
from raft.node import NodeError, NotApplied

if TYPE_CHECKING:
    from kvstore.testing.nodes import Simulation
    from kvstore.testing.simulation import SimulatedNode

WATCH = "/etcdserverpb.Watch/Watch"

WATCHERS = 4
WRITE_EVERY_S = 0.25
"""Between two transactions that change several keys in one revision."""

COMPACT_EVERY_S = 1.5
KEPT_REVISIONS = 30
"""History left by a compaction, at most: less than a watcher misses in a partition."""

PATIENCE_S = 1.0
"""Silence after which a watcher reconnects, perhaps to another member."""

CAUGHT_UP_WITHIN_S = 10.0
"""Once the cluster is healed and without writes, every watcher receives all events within this time."""

SHOWN_BYTES = 12
"""Of a value: compared and shown; they identify the write."""

ALL_KEYS = b"\0"
ONCE_IN_ORDER = "a watcher receives every change once and in order"


class _Change(NamedTuple):
    revision: int
    key: bytes
    deleted: bool
    value: bytes


class _Watcher:
    def __init__(self, key: bytes, range_end: bytes, start_revision: int) -> None:
        self.key = key
        self.range_end = range_end
        self.next_revision = start_revision
        """All changes below it were received; 0 until the first server reports where the watch starts."""
        self.lower_bound = 0
        """It receives no changes of lower revisions: they precede its start, or are compacted."""
        self.at = 0
        """How many of the reference's changes it has passed. Valid once `next_revision` is set."""

    def wants(self, key: bytes) -> bool:
        return self.range_end == ALL_KEYS or self.key <= key < self.range_end


class WatchFeature:
    """Implements `Feature`."""

    def __init__(self, cluster: Simulation, rng: random.Random) -> None:
        self._cluster = cluster
        self._rng = rng
        self._changes: list[_Change] = []
        """Every change ever applied, in order."""
        self._known = 1
        """The highest revision in `_changes`."""
        self._stopping = False
        self._counts: Counter[str] = Counter()
        self._watchers: list[_Watcher] = []
        cluster.judge.on_applied.append(self._applied)

    def started(self, member_id: int, node: SimulatedNode) -> None:
        """Nothing to do: watchers choose among usable members."""

    def ended(self, member_id: int) -> None:
        """Nothing to do: the member's calls have failed."""

    def stop(self) -> None:
        self._stopping = True

    def judge(self) -> None:
        """Nothing to do: every event was checked as it arrived."""

    def revisions(self) -> Iterable[int]:
        # Of all features: a compaction may hide revisions from the others.
        return [change.revision for change in self._changes if not change.key.startswith(b"k")]

    def operations(self) -> Mapping[str, int]:
        return self._counts

    def _applied(self, engine: Engine) -> None:
        while self._known < engine.revision:
            part = engine.history(ALL_KEYS, ALL_KEYS, self._known + 1)
            for revision, changes in part.revisions:
                for event in map(to_event, changes):
                    self._changes.append(
                        _Change(revision, event.kv.key, event.is_delete, event.kv.value[:SHOWN_BYTES])
                    )
            self._known = max(self._known, part.next_revision - 1)

    # ---- clients

    async def live(self) -> None:
        rng, quiet = self._rng, self._cluster.quiet
        for number in range(WATCHERS):
            key, range_end = (ALL_KEYS, ALL_KEYS) if number % 2 else (b"w", b"x")
            past = self._known if quiet else rng.choice((0, 1, self._known, self._known + 20))
            self._watchers.append(_Watcher(key, range_end, 0 if number == 0 else past + 1))
        async with asyncio.TaskGroup() as group:
            group.create_task(self._write())
            if not quiet:
                group.create_task(self._compact())
            for watcher in self._watchers:
                group.create_task(self._watch(watcher))

    async def _write(self) -> None:
        number = 0
        while not self._stopping:
            number += 1
            value = b"w%d" % number
            puts = [Put(b"w%d" % key, value) for key in self._rng.sample(range(6), self._rng.randint(1, 4))]
            gone = DeleteRange(b"w6", b"w6\0" + value)
            await self._propose("watched txn", Txn((), (*puts, Put(b"w6", value) if number % 2 else gone)))
            await asyncio.sleep(WRITE_EVERY_S * 2 * self._rng.random())

    async def _compact(self) -> None:
        while not self._stopping:
            await asyncio.sleep(COMPACT_EVERY_S * 2 * self._rng.random())
            revision = self._known - self._rng.choice((0, 1, KEPT_REVISIONS))
            if revision > 1:
                await self._propose("compact", Compact(revision))

    async def _propose(self, name: str, command: Txn | Compact) -> None:
        members = self._cluster.usable()
        if not members:
            return
        try:
            await self._cluster.propose(self._rng.choice(members), encode(command))
        except NotApplied:
            self._counts[f"{name} fail"] += 1
        except NodeError:
            self._counts[f"{name} info"] += 1
        else:
            self._counts[f"{name} ok"] += 1

    async def _watch(self, watcher: _Watcher) -> None:
        while not self._stopping:
            await self._listen(watcher, self._cluster.usable())
            await asyncio.sleep(0.05)

    # ---- one connection

    async def _listen(self, watcher: _Watcher, members: Sequence[int]) -> None:
        """Watch at one of the members until the connection ends or the watcher gives up."""
        services = self._cluster.services_of(self._rng.choice(members)) if members else None
        if services is None:
            return
        call = services.open(WATCH)
        if call.ended:
            return

        def send(request: pb.WatchRequest) -> None:
            call.request(request.SerializeToString())

        create = pb.WatchCreateRequest(
            key=watcher.key, range_end=watcher.range_end, start_revision=watcher.next_revision
        )
        send(pb.WatchRequest(create_request=create))
        progress = pb.WatchRequest(progress_request=pb.WatchProgressRequest())
        if self._rng.random() < 0.5 and not self._cluster.quiet:
            send(progress)
        try:
            while not self._stopping or self._behind(watcher):
                data = await asyncio.wait_for(call.next_reply(), PATIENCE_S)
                if data is None or not self._take(watcher, pb.WatchResponse.FromString(data)):
                    return
        except TimeoutError:
            self._counts["watch silence"] += 1
        except KVError:
            self._counts["watch broken"] += 1
        finally:
            call.mark_gone()

    def _take(self, watcher: _Watcher, response: pb.WatchResponse) -> bool:
        """Compare a response with the reference; False when this watch is over."""
        if response.canceled:
            self._counts["watch canceled"] += 1
            if response.compact_revision:
                self._cluster.probes.hit("a watcher's past is compacted")
                self._move_to(watcher, max(watcher.next_revision, response.compact_revision))
            return False
        if response.created:
            if watcher.next_revision == 0:
                watcher.next_revision = response.header.revision + 1
            self._move_to(watcher, watcher.next_revision)
            return True
        if not response.events:
            self._check_progress(watcher, response.header.revision)
            return True
        revisions = {event.kv.mod_revision for event in response.events}
        self._cluster.probes.hit("a watcher receives many revisions at once", when=len(revisions) > 1)
        for event in response.events:
            deleted = event.type == 1  # the wire's DELETE
            change = _Change(event.kv.mod_revision, event.kv.key, deleted, event.kv.value[:SHOWN_BYTES])
            expected = self._next(watcher)
            if change != expected:
                self._cluster.judge.violate(ONCE_IN_ORDER, f"{change} where {expected} was due")
            watcher.at += 1
            watcher.next_revision = max(watcher.next_revision, change.revision + 1)
        self._counts["watch ok"] += 1
        return True

    def _move_to(self, watcher: _Watcher, revision: int) -> None:
        watcher.next_revision = watcher.lower_bound = revision
        watcher.at = max(watcher.at, bisect_left(self._changes, revision, key=_revision_of))

    def _next(self, watcher: _Watcher) -> _Change | None:
        """The change this watcher must receive next; None while there is none."""
        while watcher.at < len(self._changes):
            change = self._changes[watcher.at]
            if change.revision >= watcher.lower_bound and watcher.wants(change.key):
                return change
            watcher.at += 1
        return None

    def _behind(self, watcher: _Watcher) -> bool:
        return watcher.next_revision > 0 and self._next(watcher) is not None

    def _check_progress(self, watcher: _Watcher, revision: int) -> None:
        self._counts["watch progress"] += 1
        due = self._next(watcher)
        if due is not None and due.revision <= revision:
            self._cluster.judge.violate("progress follows all earlier events", f"{revision}, due {due}")

    # ---- liveness

    async def check_liveness(self, core: Sequence[int]) -> None:
        """The writes have ended: every watcher receives the rest."""
        loop = self._cluster.loop
        for watcher in self._watchers:
            end_s = loop.time() + CAUGHT_UP_WITHIN_S
            while self._behind(watcher):
                if loop.time() > end_s:
                    due = self._next(watcher)
                    self._cluster.judge.violate("a watcher catches up", f"still due: {due}")
                    return
                await self._listen(watcher, core)
                await asyncio.sleep(0.05)


def _revision_of(change: _Change) -> int:
    return change.revision
