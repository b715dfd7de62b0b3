"""One process of clients: `python -m kvstore.verify.load SPEC` runs until its input closes."""

from __future__ import annotations

import asyncio
import gc
import sys
from pathlib import Path
from typing import TextIO

from kvstore.verify.load.client_protocol import Client
from kvstore.verify.load.logical_client import Load, LoadSpec, Slot
from kvstore.verify.load.workloads import WORKLOADS

FLUSH_S = 0.25
EXIT_NOT_SERVED = 4
"""The server does not know what the workload needs; the service's name is on the standard error."""


def connect(kind: str, endpoint: str, timeout_s: float) -> Client:
    """A client of a kind. Loaded here, because each kind may live in an environment of its own."""
    if kind == "aetcd":
        from kvstore.verify.load.aetcd_client import AetcdClient  # needs aetcd

        return AetcdClient(endpoint, timeout_s)
    from kvstore.verify.load.grpc_client import ThinClient  # needs this package's own gRPC

    return ThinClient(endpoint, timeout_s)


async def run(spec: LoadSpec, out: TextIO) -> int:
    load = Load(spec, out)
    loop = asyncio.get_running_loop()
    clients = [connect(spec.client, endpoint, spec.timeout_s) for endpoint in spec.endpoints]
    slots = [Slot(load, number, clients) for number in spec.slots]

    def ended() -> None:
        loop.remove_reader(sys.stdin.fileno())
        load.stopping.set()

    loop.add_reader(sys.stdin.fileno(), ended)  # the input says nothing, it only ends
    workload = WORKLOADS[spec.workload]
    gc.freeze()
    async with asyncio.TaskGroup() as group:
        working = [group.create_task(_whole(workload(slot))) for slot in slots]
        flushing = group.create_task(_flush(load, out))
        await asyncio.wait(working)
        flushing.cancel()
    for client in clients:
        await client.close()
    if load.not_served is not None:
        sys.stderr.write(f"not served: {load.not_served}\n")
        return EXIT_NOT_SERVED
    return 0


async def _whole(slot: object) -> None:
    await slot  # type: ignore[misc]  # an awaitable; the group wants a coroutine


async def _flush(load: Load, out: TextIO) -> None:
    while True:
        await asyncio.sleep(FLUSH_S)
        out.flush()


def main() -> int:
    spec = LoadSpec.parse(sys.argv[1])
    with Path(spec.history).open("w", encoding="utf-8") as out:
        return asyncio.run(run(spec, out))


if __name__ == "__main__":
    sys.exit(main())
