"""A client that keeps writing under faults: unique keys at a fixed rate, all endpoints in rotation, no retry.

    python -m bench.writer '{"endpoints": [...], "rate": 200, "prefix": "w/", "out": "writes.txt"}'

Each write is one line of the output, when its outcome is known: sent, done (monotonic seconds, which all
processes of a machine share), the key's number, and `ok` or the error. It ends when its input closes.
`Writer` is the parent's side.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self, TextIO

import grpc.aio

from bench import rpc
from bench.clusters import ROOT, ClusterError, pause
from kvstore.wire import rpc_pb2

REQUEST_SECONDS_MAX = 8.0  # longer than the servers' own 7 s, so that they decide
IN_FLIGHT_MAX = 4096  # rate x timeout with a margin; beyond it the rate is not kept, and said so
FLUSH_SECONDS = 0.02
PAGE_KEYS = 2000
READ_SECONDS_MAX = 20.0
END_SECONDS_MAX = REQUEST_SECONDS_MAX + 5


class Write(NamedTuple):
    """One write whose outcome is known."""

    sent: float
    done: float
    number: int
    error: str

    @property
    def is_acknowledged(self) -> bool:
        return self.error == "ok"


def value_of(number: int) -> bytes:
    return b"value of %d" % number


def key_of(prefix: str, number: int) -> bytes:
    return b"%s%08d" % (prefix.encode(), number)


# --- the child ---


async def _write(store: rpc.Store, prefix: str, number: int, out: TextIO) -> None:
    request = rpc_pb2.PutRequest(key=key_of(prefix, number), value=value_of(number))
    sent = time.monotonic()
    try:
        await store.put(request, timeout=REQUEST_SECONDS_MAX)
        said = "ok"
    except grpc.aio.AioRpcError as error:
        said = f"{error.code().name} {error.details()}".replace("\n", " ")
    out.write(f"{sent:.6f} {time.monotonic():.6f} {number} {said}\n")


async def _child(endpoints: Sequence[str], rate: float, prefix: str, out: TextIO) -> None:
    stores = [rpc.Store(endpoint) for endpoint in endpoints]
    ended = asyncio.ensure_future(asyncio.to_thread(sys.stdin.read))
    began, number = time.monotonic(), 0
    writes: set[asyncio.Task[None]] = set()
    while not ended.done():
        due = int((time.monotonic() - began) * rate)
        while number < due and len(writes) < IN_FLIGHT_MAX:
            task = asyncio.create_task(_write(stores[number % len(stores)], prefix, number, out))
            writes.add(task)
            task.add_done_callback(writes.discard)
            number += 1
        out.flush()
        await asyncio.wait([ended], timeout=min(FLUSH_SECONDS, 1 / rate))
    await asyncio.gather(*writes)
    for store in stores:
        await store.close()


def main() -> None:
    spec = json.loads(sys.argv[1])
    with Path(spec["out"]).open("w") as out:
        asyncio.run(_child(spec["endpoints"], spec["rate"], spec["prefix"], out))


# --- the parent ---


class Writer:
    """The writer process, and what it has learnt so far. A context manager: leaving it ends the process."""

    def __init__(self, endpoints: Sequence[str], folder: Path, *, rate: float, prefix: str = "w/") -> None:
        self.endpoints, self.prefix = endpoints, prefix
        self.out = folder / "writes.txt"
        self.writes: list[Write] = []
        """Every known outcome, in the order in which it became known."""
        self._offset = 0
        spec = {"endpoints": list(endpoints), "rate": rate, "prefix": prefix, "out": str(self.out)}
        self.out.write_text("")
        command = [sys.executable, "-m", "bench.writer", json.dumps(spec)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, cwd=ROOT)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.communicate()

    def update(self) -> list[Write]:
        """Read what became known since the last call; returns only that."""
        assert self.process.poll() is None or self.process.returncode == 0, "the writer died"
        with self.out.open() as file:
            file.seek(self._offset)
            text = file.read()
        whole = text[: text.rfind("\n") + 1]
        self._offset += len(whole)
        fresh = []
        for line in whole.splitlines():
            sent, done, number, said = line.split(" ", 3)
            fresh.append(Write(float(sent), float(done), int(number), said))
        self.writes += fresh
        return fresh

    def wait_acknowledged(self, after: float, count: int, seconds: float) -> None:
        """Until so many writes sent after that moment are acknowledged."""
        deadline = time.monotonic() + seconds
        while sum(write.sent >= after and write.is_acknowledged for write in self.writes) < count:
            if time.monotonic() > deadline:
                seen = {write.error for write in self.writes if write.sent >= after}
                raise ClusterError(f"fewer than {count} writes acknowledged in {seconds} s; outcomes {seen}")
            self.process.poll()
            pause(FLUSH_SECONDS)
            self.update()

    def finish(self) -> None:
        """End the process and read all outcomes."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(END_SECONDS_MAX)
        self.update()

    def verify(self, endpoint: str) -> list[str]:
        """Read every key back: what acknowledged writes lack, what is there twice; empty if all is well."""
        return asyncio.run(self._verify(endpoint))

    async def _verify(self, endpoint: str) -> list[str]:
        found: dict[bytes, tuple[bytes, int]] = {}
        start, end = self.prefix.encode(), self.prefix[:-1].encode() + bytes([ord(self.prefix[-1]) + 1])
        async with rpc.Store(endpoint) as store:
            more = True
            while more:
                request = rpc_pb2.RangeRequest(key=start, range_end=end, limit=PAGE_KEYS)
                reply = await store.range(request, timeout=READ_SECONDS_MAX)
                found.update((pair.key, (pair.value, pair.version)) for pair in reply.kvs)
                more = reply.more
                if reply.kvs:
                    start = reply.kvs[-1].key + b"\0"
        complaints = [
            f"{key!r} was written {version} times" for key, (_, version) in found.items() if version != 1
        ]
        for write in self.writes:
            value, _ = found.get(key_of(self.prefix, write.number), (None, 0))
            if write.is_acknowledged and value != value_of(write.number):
                complaints.append(
                    f"{write.number}, acknowledged at {write.done:.3f}, reads back as {value!r}"
                )
        return complaints


if __name__ == "__main__":
    main()
