"""Workloads on keys and values. Keys are used for a short while only, so that searches stay short.

A workload is a coroutine function that runs one slot until the load is stopping. The forms of the
values stand in the checkers that read them: `witness` (register), `transactions` (txn),
`list_append` (append) and `sets` (set, counter).
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from kvstore.verify.load import coordination
from kvstore.verify.load.client_protocol import CertainFailureError, Held
from kvstore.verify.load.logical_client import Slot

BLOCK_S = 2.0
"""How long a block of keys is in use: with 600 operations a second over 8 keys, 150 operations a key."""

KEYS_PER_BLOCK = 8
GROUP_KEYS = 3
"""Keys that transactions share; operations on one group are searched together."""

APPEND_TRIES = 4
"""Attempts of one list-append transaction; a failed comparison is certain to have changed nothing."""

Workload = Callable[[Slot], Awaitable[None]]


def _key(slot: Slot, kind: str, keys: int = KEYS_PER_BLOCK) -> str:
    return f"{kind}/{slot.load.block(BLOCK_S)}/{slot.rng.randrange(keys)}"


async def register(slot: Slot) -> None:
    """get (a tenth of them serializable), put, cas and delete of single keys."""
    seen: dict[str, str | None] = {}
    while not slot.load.is_stopping():
        key = _key(slot, "r")
        draw = slot.rng.random()
        if draw < 0.5 or (draw < 0.75 and key not in seen):
            serializable = slot.rng.random() < 0.1
            reply = await _get(slot, key, serializable)
            if reply is not None:
                seen[key] = reply["value"]
        elif draw < 0.75:
            seen[key] = await _cas(slot, key, seen[key]) or seen[key]
        elif draw < 0.95:
            await _put(slot, key)
        else:
            await _delete(slot, key)
        if len(seen) > 10 * KEYS_PER_BLOCK:
            seen.clear()
        await slot.pace()


async def _get(slot: Slot, key: str, serializable: bool) -> Any:
    async def action() -> dict[str, Any]:
        revision, held = await slot.client.get(key, serializable=serializable)
        return {"revision": revision, "value": held.value, "mod": held.mod}

    asked = [key, "serializable"] if serializable else [key]
    return await slot.perform("get", asked, action, reads_only=True)


async def _cas(slot: Slot, key: str, expected: str | None) -> str | None:
    value = str(slot.fresh())

    async def action() -> dict[str, Any]:
        revision, succeeded = await slot.client.compare_and_set(key, expected, value)
        return {"revision": revision, "succeeded": succeeded}

    reply = await slot.perform("cas", [key, expected, value], action)
    return value if reply is not None and reply["succeeded"] else None


async def _put(slot: Slot, key: str) -> None:
    value = str(slot.fresh())

    async def action() -> dict[str, Any]:
        return {"revision": await slot.client.put(key, value)}

    await slot.perform("put", [key, value], action)


async def _delete(slot: Slot, key: str) -> None:
    async def action() -> dict[str, Any]:
        revision, deleted = await slot.client.delete(key)
        return {"revision": revision, "deleted": deleted}

    await slot.perform("delete", [key], action)


async def txn(slot: Slot) -> None:
    """Transactions that read some keys of a group and write others, without comparing."""
    while not slot.load.is_stopping():
        group = _key(slot, "t")
        names = [f"{group}/{letter}" for letter in "abcdefgh"[:GROUP_KEYS]]
        reads = [name for name in names if slot.rng.random() < 0.6]
        writes = [(name, str(slot.fresh())) for name in names if slot.rng.random() < 0.4]
        if reads or writes:
            await _txn(slot, reads or names, writes)
        await slot.pace()


async def _txn(slot: Slot, reads: list[str], writes: list[tuple[str, str]]) -> None:
    async def action() -> dict[str, Any]:
        reply = await slot.client.txn([], reads, writes)
        seen = [["r", key, held.value, held.mod] for key, held in zip(reads, reply.reads, strict=True)]
        return {"revision": reply.revision, "mops": [*seen, *(["w", key, value] for key, value in writes)]}

    asked = [*(["r", key, None] for key in reads), *(["w", key, value] for key, value in writes)]
    await slot.perform("txn", asked, action, reads_only=not writes)


async def append(slot: Slot) -> None:
    """Transactions over lists: read several keys at once, then write them if none has changed."""
    while not slot.load.is_stopping():
        mops: list[list[Any]] = []
        for _ in range(slot.rng.randint(1, 3)):
            key = _key(slot, "a", 2 * KEYS_PER_BLOCK)
            appends = slot.rng.random() < 0.5
            mops.append(["append", key, slot.fresh()] if appends else ["r", key, None])
        await _append(slot, mops)
        await slot.pace()


async def _append(slot: Slot, mops: list[list[Any]]) -> None:
    keys = list(dict.fromkeys(key for _, key, _ in mops))
    writes_anything = any(f == "append" for f, _, _ in mops)

    async def action() -> list[list[Any]]:
        held = (await slot.client.txn([], keys, [])).reads
        for _ in range(APPEND_TRIES):
            done, lists = _apply(mops, dict(zip(keys, held, strict=True)))
            if not writes_anything:
                return done
            unchanged = [(key, now.mod) for key, now in zip(keys, held, strict=True)]
            reply = await slot.client.txn(unchanged, keys, [(k, json.dumps(v)) for k, v in lists.items()])
            if reply.succeeded:
                return done
            held = reply.reads
        raise CertainFailureError("the keys changed every time")

    await slot.perform("txn", mops, action, reads_only=not writes_anything)


def _apply(mops: list[list[Any]], held: dict[str, Held]) -> tuple[list[list[Any]], dict[str, list[int]]]:
    """What a transaction returns, and the lists it leaves behind, if the keys hold this."""
    lists = {key: json.loads(now.value or "[]") for key, now in held.items()}
    written: dict[str, list[int]] = {}
    done = []
    for f, key, value in mops:
        if f == "append":
            lists[key].append(value)
            written[key] = lists[key]
        done.append([f, key, value if f == "append" else list(lists[key])])
    return done, written


async def add_to_set(slot: Slot) -> None:
    """Elements are keys of their own, added once; now and then the block in use is read whole."""
    while not slot.load.is_stopping():
        block = f"s/{slot.load.block(BLOCK_S)}/"
        if slot.rng.random() < 0.1:
            await _read_set(slot, block)
        else:
            await _add(slot, f"{block}{slot.fresh()}")
        await slot.pace()


async def _add(slot: Slot, element: str) -> None:
    async def action() -> str:
        await slot.client.put(element, "1")
        return element

    await slot.perform("add", element, action)


async def _read_set(slot: Slot, prefix: str) -> None:
    async def action() -> list[str]:
        _, pairs = await slot.client.list(prefix)
        return [key for key, _ in pairs]

    await slot.perform("read", prefix, action, reads_only=True)


async def counter(slot: Slot) -> None:
    """Puts of the same key, counted by its version: a write applied twice shows."""
    while not slot.load.is_stopping():
        key = _key(slot, "c")
        if slot.rng.random() < 0.4:
            await _read_counter(slot, key)
        else:
            await _increment(slot, key)
        await slot.pace()


async def _increment(slot: Slot, key: str) -> None:
    async def action() -> list[Any]:
        await slot.client.put(key, str(slot.number))
        return [key, 1]

    await slot.perform("add", [key, 1], action)


async def _read_counter(slot: Slot, key: str) -> None:
    async def action() -> list[Any]:
        _, held = await slot.client.get(key)
        return [key, held.version]

    await slot.perform("read", [key, None], action, reads_only=True)


WORKLOADS: dict[str, Workload] = {
    "register": register,
    "txn": txn,
    "append": append,
    "set": add_to_set,
    "counter": counter,
    "watch": coordination.watch,
    "lock": coordination.lock,
    "lock-fenced": coordination.fenced_lock,
    "lease": coordination.lease,
}
"""Every workload by its name on the command line."""

CLIENTS_OF: dict[str, tuple[str, ...]] = {
    "watch": ("thin",),
    "lock": ("thin",),
    "lock-fenced": ("thin",),
    "lease": ("thin",),
}
"""Kinds of client that can drive a workload, where not all can."""
