"""`make mirror`: a mirror from this store to etcd and another back, compared by key, value and count.

One process of the chosen tool copies one way while its source is written on; each copy is compared once it
has come to rest. Writes bench/results/mirror.json.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import grpc

from bench import clusters
from kvstore.wire import rpc_pb2

SECONDS_MAX = 900.0
"""For one copy; etcdctl copies key by key, a few hundred a second on a slow disk."""
BATCH = 100
PREFIX, BACK = b"mirrored/", b"back/"
RESULTS = Path("bench/results/mirror.json")

Pairs = dict[bytes, bytes]


class Endpoint:
    """Plain calls to one member."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._channel = grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)])
        self._range = self._channel.unary_unary(
            "/etcdserverpb.KV/Range",
            request_serializer=rpc_pb2.RangeRequest.SerializeToString,
            response_deserializer=rpc_pb2.RangeResponse.FromString,
        )
        self._txn = self._channel.unary_unary(
            "/etcdserverpb.KV/Txn",
            request_serializer=rpc_pb2.TxnRequest.SerializeToString,
            response_deserializer=rpc_pb2.TxnResponse.FromString,
        )

    def write(self, operations: Sequence[rpc_pb2.RequestOp]) -> None:
        for start in range(0, len(operations), BATCH):
            self._txn(rpc_pb2.TxnRequest(success=operations[start : start + BATCH]), timeout=30)

    def count(self, prefix: bytes) -> int:
        request = rpc_pb2.RangeRequest(key=prefix, range_end=_end(prefix), count_only=True)
        return int(self._range(request, timeout=30).count)

    def pairs(self, prefix: bytes) -> Pairs:
        """Without the prefix."""
        reply = self._range(rpc_pb2.RangeRequest(key=prefix, range_end=_end(prefix)), timeout=120)
        return {pair.key[len(prefix) :]: pair.value for pair in reply.kvs}

    def empty(self) -> None:
        """Delete everything."""
        every = rpc_pb2.DeleteRangeRequest(key=b"\0", range_end=b"\0")
        self.write([rpc_pb2.RequestOp(request_delete_range=every)])

    def close(self) -> None:
        self._channel.close()


def _end(prefix: bytes) -> bytes:
    return prefix[:-1] + bytes([prefix[-1] + 1])


def _put(key: bytes, value: bytes) -> rpc_pb2.RequestOp:
    return rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=PREFIX + key, value=value))


def _delete(key: bytes) -> rpc_pb2.RequestOp:
    return rpc_pb2.RequestOp(request_delete_range=rpc_pb2.DeleteRangeRequest(key=PREFIX + key))


class Copy(NamedTuple):
    """One way."""

    way: str
    keys: int
    seconds: float
    """Until the first copy was complete."""


@contextmanager
def _mirroring(
    tool: Sequence[str], source: Endpoint, target: Endpoint, *flags: str
) -> Iterator[subprocess.Popen[bytes]]:
    command = [*tool, f"--endpoints={source.address}", "make-mirror", *flags, target.address]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _until_equal(process: subprocess.Popen[bytes], expected: Pairs, target: Endpoint, prefix: bytes) -> float:
    """Wait for a copy; seconds it took. Raises AssertionError when it never comes, or the tool ends."""
    began = time.monotonic()
    while True:
        if target.count(prefix) == len(expected) and target.pairs(prefix) == expected:
            return time.monotonic() - began
        if process.poll() is not None:
            raise AssertionError(f"the mirror ended: {process.stderr.read()!r}")  # type: ignore[union-attr]  # a pipe
        if time.monotonic() - began > SECONDS_MAX:
            raise AssertionError(f"{target.count(prefix)} of {len(expected)} keys were copied")
        clusters.pause(0.1)


def run(
    ours: Endpoint, etcd: Endpoint, *, keys: int, seed: int, tool: Sequence[str] = ("etcdctl",)
) -> list[Copy]:
    """Fill this store, mirror it to etcd and from there back under another prefix, changing it meanwhile."""
    rng = random.Random(seed)
    pairs = {b"%08x/%d" % (rng.randrange(1 << 32), n): rng.randbytes(rng.randrange(64)) for n in range(keys)}
    ours.write([_put(key, value) for key, value in pairs.items()])
    with _mirroring(tool, ours, etcd, f"--prefix={PREFIX.decode()}") as there:
        copies = [Copy("here to etcd", keys, _until_equal(there, pairs, etcd, PREFIX))]
        _change(ours, pairs, rng)
        _until_equal(there, pairs, etcd, PREFIX)
    flags = (f"--prefix={PREFIX.decode()}", f"--dest-prefix={BACK.decode()}")
    with _mirroring(tool, etcd, ours, *flags) as back:
        copies.append(Copy("etcd to here", len(pairs), _until_equal(back, pairs, ours, BACK)))
        _change(etcd, pairs, rng)
        _until_equal(back, pairs, ours, BACK)
    return copies


def _change(source: Endpoint, pairs: Pairs, rng: random.Random) -> None:
    """Change, delete and add some keys while a mirror runs."""
    chosen = rng.sample(sorted(pairs), min(len(pairs), 300))
    operations = []
    for number, key in enumerate(chosen):
        if number % 3:
            pairs[key] = rng.randbytes(20)
            operations.append(_put(key, pairs[key]))
        else:
            del pairs[key]
            operations.append(_delete(key))
    for number in range(50):
        key = b"new/%d/%d" % (rng.randrange(1 << 32), number)
        pairs[key] = b"\x00\xff"
        operations.append(_put(key, pairs[key]))
    source.write(operations)


TOOLS = ("etcdctl", "kvstore")


def command_of(tool: str) -> list[str]:
    """How a tool is called. Raises ClusterError when etcdctl is not there."""
    if tool == "kvstore":
        return [sys.executable, "-m", "kvstore"]
    found = clusters.find_etcd("etcdctl")
    if found is None:
        raise clusters.ClusterError(clusters.NO_ETCD)
    return [str(found)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="make mirror", description=__doc__)
    parser.add_argument("--keys", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**9))
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    options = parser.parse_args()
    print(f"seed {options.seed}: {options.keys} keys", flush=True)
    results = []
    for tool in options.tools:
        with tempfile.TemporaryDirectory(prefix="mirror-") as folder:
            mine = clusters.ours(Path(folder) / "ours")
            theirs = clusters.etcd(Path(folder) / "etcd", size=1)
            with mine, theirs:
                ends = [Endpoint(cluster.endpoints[0]) for cluster in (mine, theirs)]
                copies = run(*ends, keys=options.keys, seed=options.seed, tool=command_of(tool))
                for end in ends:
                    end.close()
        for copy in copies:
            print(f"{tool}: {copy.way}, {copy.keys} keys equal after {copy.seconds:.1f} s", flush=True)
            results.append({"tool": tool, **copy._asdict()})
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps({"seed": options.seed, "copies": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
