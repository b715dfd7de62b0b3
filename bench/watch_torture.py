"""`make watch-torture`: across killed leaders and restarts, watchers miss, repeat and reorder nothing.

Writers change keys in transactions of several; three watchers follow, each through another member
first; leaders are killed with SIGKILL, members restarted, and others paused until they need a snapshot. In
the end each watcher must have received exactly the events that a new watch reads from the history of each
member, and a sample of revisions is compared with reads of the past.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from bench import clusters
from kvstore.client import RANGE, TXN, Connection, Watching, parse_endpoints
from kvstore.errors import KVError
from kvstore.wire import kv_pb2, rpc_pb2

WRITERS = 8
KEYS = 400
CHANGES_PER_TXN = 10
CALL_SECONDS_MAX = 10.0
WRITE_SECONDS_MAX = 2.0  # then another member is tried: a paused one never answers
PROGRESS_SECONDS_MAX = 60.0  # without one more event: the cluster or a watcher is stuck
UNDISTURBED_EVENTS = 300  # written between two faults at the least
SAMPLES = 100  # revisions compared with a read of the past
PAUSE_EVENTS = 8000  # written while a member is paused: more than the log keeps, all writers in one batch
POLL_SECONDS = 0.02
INSTALLED = "the state is now the "
"""A member's log line when it has installed a snapshot."""
DROPPED = "no stream to member"
"""A member's log line when its stream to another has ended."""

FLAGS = ("--snapshot-count=50", "--snapshot-catchup-entries=20")
"""A log so short that a member that was away for a while needs a snapshot."""


class Seen(NamedTuple):
    """One event as a watcher received it."""

    revision: int
    is_delete: bool
    key: bytes
    create_revision: int
    version: int
    value: bytes
    prev_revision: int
    """Of the pair before, 0 if none was sent."""


class Follower:
    """A watcher of everything, and what it received."""

    def __init__(self, endpoints: list[str], start_revision: int = 1) -> None:
        self.endpoints = endpoints
        self.start_revision = start_revision
        self.events: list[Seen] = []
        self.complaints: list[str] = []
        self.reconnects = 0

    @property
    def revision(self) -> int:
        return self.events[-1].revision if self.events else 0

    async def run(self) -> None:
        """Until cancelled."""
        request = rpc_pb2.WatchCreateRequest(
            key=b"\0", range_end=b"\0", start_revision=self.start_revision, prev_kv=True
        )
        connection = Connection(parse_endpoints(",".join(self.endpoints)), timeout_s=CALL_SECONDS_MAX)
        async with connection, Watching(connection, request) as watching:
            async for response in watching:
                self.reconnects = watching.reconnects
                if response.canceled:
                    self.complaints.append(f"cancelled: {response}")
                    return
                seen = [_seen(event) for event in response.events]
                if seen and seen[0].revision <= self.revision:
                    self.complaints.append(f"revision {seen[0].revision} after {self.revision}")
                if seen and response.header.revision < seen[-1].revision:
                    self.complaints.append(f"header {response.header.revision} below {seen[-1].revision}")
                self.events += seen


def _seen(event: kv_pb2.Event) -> Seen:
    pair = event.kv
    return Seen(
        pair.mod_revision,
        event.type == kv_pb2.Event.DELETE,
        pair.key,
        pair.create_revision,
        pair.version,
        pair.value,
        event.prev_kv.mod_revision,
    )


async def _write(endpoints: list[str], rng: random.Random) -> None:
    """One writer, until cancelled. A write of unknown outcome may have happened; the history shows it."""
    connection = Connection(parse_endpoints(",".join(endpoints)), timeout_s=WRITE_SECONDS_MAX)
    async with connection:
        while True:
            operations = []
            for number in rng.sample(range(KEYS), CHANGES_PER_TXN):
                key = b"k%04d" % number
                if rng.random() < 0.2:
                    change = rpc_pb2.DeleteRangeRequest(key=key)
                    operations.append(rpc_pb2.RequestOp(request_delete_range=change))
                else:
                    put = rpc_pb2.PutRequest(key=key, value=b"%016x" % rng.getrandbits(64))
                    operations.append(rpc_pb2.RequestOp(request_put=put))
            try:
                await connection.call(TXN, rpc_pb2.TxnRequest(success=operations))
            except KVError:
                connection.avoid()
                await asyncio.sleep(POLL_SECONDS)


async def _until(condition: Callable[[], bool], progress: Callable[[], int], what: str) -> None:
    """Wait while there is progress. Raises ClusterError when it stops."""
    last, deadline = progress(), time.monotonic() + PROGRESS_SECONDS_MAX
    while not condition():
        await asyncio.sleep(POLL_SECONDS)
        if progress() != last:
            last, deadline = progress(), time.monotonic() + PROGRESS_SECONDS_MAX
        if time.monotonic() > deadline:
            raise clusters.ClusterError(f"stuck while waiting for {what}")


class _Run:
    def __init__(self, cluster: clusters.Cluster, rng: random.Random) -> None:
        self.cluster = cluster
        self.rng = rng
        self.by_age = list(cluster.members)
        """Those whose process has run for longest first: so all are replaced before long, watched or not."""
        endpoints = cluster.endpoints
        self.followers = [Follower(endpoints[at:] + endpoints[:at]) for at in range(len(endpoints))]

    def received(self) -> int:
        """Events that all watchers received."""
        return min(len(follower.events) for follower in self.followers)

    def newest(self) -> int:
        """Events that some watcher received."""
        return max(len(follower.events) for follower in self.followers)

    async def more(self, count: int) -> None:
        goal = self.received() + count
        await _until(lambda: self.received() >= goal, self.received, f"{count} more events")

    async def kill_leader(self) -> None:
        leader = await asyncio.to_thread(self.cluster.leader)
        leader.kill()
        await self.more(UNDISTURBED_EVENTS)
        await self._start(leader)

    async def restart_one(self) -> None:
        member = self.by_age[0]
        await asyncio.to_thread(member.stop)
        await self.more(UNDISTURBED_EVENTS)
        await self._start(member)

    async def _start(self, member: clusters.Member) -> None:
        member.start()
        self.by_age.remove(member)
        self.by_age.append(member)
        await asyncio.to_thread(self.cluster.wait_ready)

    async def pause_one(self) -> None:
        """A member is paused until it lags behind the compacted log; then it installs a snapshot.

        The log is counted from the moment at which the leader drops the stream: what was written to it before
        waits in the kernel, and reaches the member when it goes on.
        """
        leader = await asyncio.to_thread(self.cluster.leader)
        member = self.rng.choice([one for one in self.cluster.members if one is not leader])

        def dropped() -> int:
            return leader.log.read_text().count(DROPPED)

        before = dropped()
        member.signal(signal.SIGSTOP)
        try:
            await _until(lambda: dropped() > before, self.newest, "the end of the stream to a paused member")
            goal = self.newest() + PAUSE_EVENTS
            await _until(lambda: self.newest() >= goal, self.newest, "events past a paused member")
        finally:
            member.signal(signal.SIGCONT)
        await asyncio.to_thread(self.cluster.wait_ready)

    async def main(self, kills: int, restarts: int, pauses: int, events: int) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        watching = [loop.create_task(follower.run()) for follower in self.followers]
        endpoints = self.cluster.endpoints
        writing = [
            loop.create_task(_write(endpoints, random.Random(self.rng.getrandbits(64))))
            for _ in range(WRITERS)
        ]
        faults = [self.kill_leader] * kills + [self.restart_one] * restarts + [self.pause_one] * pauses
        self.rng.shuffle(faults)
        for number, fault in enumerate(faults):
            await self.more(UNDISTURBED_EVENTS)
            await fault()
            print(f"fault {number + 1} ({fault.__name__}): {self.received()} events", flush=True)
        await _until(lambda: self.received() >= events, self.received, f"{events} events")
        for task in writing:
            task.cancel()
        await asyncio.gather(*writing, return_exceptions=True)
        complaints = await self._judge()
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
        return {
            "kills": kills,
            "restarts": restarts,
            "pauses": pauses,
            "snapshots": sum(member.log.read_text().count(INSTALLED) for member in self.cluster.members),
            "events": self.received(),
            "reconnects": [follower.reconnects for follower in self.followers],
            "complaints": complaints[:20],
        }

    async def _judge(self) -> list[str]:
        """Compare with the history that each member keeps."""
        complaints = [line for follower in self.followers for line in follower.complaints]
        async with Connection(
            parse_endpoints(",".join(self.cluster.endpoints)), timeout_s=CALL_SECONDS_MAX
        ) as connection:
            reply = await connection.call(RANGE, rpc_pb2.RangeRequest(key=b"k", limit=1))
            final = reply.header.revision
            caught_up = [*self.followers]
            await _until(
                lambda: all(follower.revision >= final for follower in caught_up),
                self.received,
                "the last event",
            )
            history = self.followers[0].events
            for endpoint in self.cluster.endpoints:
                again = Follower([endpoint])
                reading = asyncio.get_running_loop().create_task(again.run())
                await _until(
                    lambda again=again: again.revision >= final,  # type: ignore[misc]  # bound at once
                    lambda again=again: len(again.events),  # type: ignore[misc]  # bound at once
                    f"the history of {endpoint}",
                )
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
                for number, follower in enumerate(self.followers):
                    complaints += compare(f"watcher {number} and {endpoint}", follower.events, again.events)
            complaints += await _sample(connection, history, self.rng)
        return complaints


def compare(what: str, told: list[Seen], history: list[Seen]) -> list[str]:
    """Where two sequences of events differ first."""
    for position, (one, other) in enumerate(zip(told, history, strict=False)):
        if one != other:
            return [f"{what} differ at {position}: {one} and {other}"]
    if len(told) != len(history):
        return [f"{what} differ in length: {len(told)} and {len(history)}"]
    return []


async def _sample(connection: Connection, history: list[Seen], rng: random.Random) -> list[str]:
    """Compare the changes of some revisions with a read of that past."""
    complaints = []
    for revision in rng.sample(sorted({seen.revision for seen in history}), SAMPLES):
        request = rpc_pb2.RangeRequest(
            key=b"\0", range_end=b"\0", revision=revision, min_mod_revision=revision
        )
        reply = await connection.call(RANGE, request)
        found = [(pair.key, pair.value, pair.version) for pair in reply.kvs]
        told = sorted(
            (seen.key, seen.value, seen.version)
            for seen in history
            if seen.revision == revision and not seen.is_delete
        )
        if found != told:
            complaints.append(f"revision {revision}: read {found}, told {told}")
    return complaints


def torture(
    cluster: clusters.Cluster, rng: random.Random, *, kills: int, restarts: int, pauses: int, events: int
) -> dict[str, Any]:
    """The cluster runs already. Raises ClusterError if it does not come back."""
    return asyncio.run(_Run(cluster, rng).main(kills, restarts, pauses, events))


def main() -> int:
    parser = argparse.ArgumentParser(prog="make watch-torture", description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--restarts", type=int, default=5)
    parser.add_argument("--pauses", type=int, default=5)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**9))
    parser.add_argument("--out", type=Path, default=Path("bench/results/watch-torture.json"))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with (
        tempfile.TemporaryDirectory(prefix="watch-") as name,
        clusters.ours(Path(name), flags=FLAGS) as cluster,
    ):
        began = time.monotonic()
        result = torture(
            cluster,
            random.Random(options.seed),
            kills=options.kills,
            restarts=options.restarts,
            pauses=options.pauses,
            events=options.events,
        )
        result = {"seed": options.seed, "seconds": round(time.monotonic() - began), **result}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    return 1 if result["complaints"] else 0


if __name__ == "__main__":
    sys.exit(main())
