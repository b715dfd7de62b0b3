"""Workloads on watches, locks and leases. The checkers document the form of their values."""

from __future__ import annotations

import asyncio
import json
import time
from functools import partial
from typing import Any

from kvstore.verify.load.client_protocol import CertainFailureError, UnknownOutcomeError, WatchReply
from kvstore.verify.load.logical_client import Slot

WATCHERS_SHARE = 4
"""One slot in this many watches; the others write."""

WATCH_KEYS = 8
WRITTEN_FOLDERS = "wwwv"
WATCH_PREFIXES = ("w/", "w/", "w/3", "v/")
"""What is watched: most of it, one key, the rest. Every watch must leave out changes that only others ask
for."""
WATCH_EVENTS_MAX = 20_000
"""Events one watch records before it is ended: bounds a line of the history."""

LOCK_NAMES = ("locks/a", "locks/b")
LOCK_TTL_S = 2
LOCK_PATIENCE_S = 8.0
"""How long a slot waits for a lock: several holders, one of them paused for five seconds."""

HOLD_S = (0.02, 0.2)
DOOMED_SHARE = 0.15
"""Share of waits whose lease is revoked while they wait: such a wait must never end in a lock."""

LEASE_TTL_S = 2
GONE_PATIENCE = 10
"""Polls for the end of a key, each half a TTL apart: an election restarts leases in full."""


# --- watches ---


async def watch(slot: Slot) -> None:
    """Some slots write, the others watch from the past, from now and from the future, and resume."""
    if slot.number % WATCHERS_SHARE == 0:
        await _watcher(slot)
        return
    while not slot.load.is_stopping():
        await _change(slot)
        await slot.pace()


async def _change(slot: Slot) -> None:
    draw = slot.rng.random()
    keys = [f"{slot.rng.choice(WRITTEN_FOLDERS)}/{slot.rng.randrange(WATCH_KEYS)}" for _ in range(2)]
    if draw < 0.2:

        async def delete() -> dict[str, Any]:
            revision, deleted = await slot.client.delete(keys[0])
            return {"revision": revision, "deleted": deleted}

        await slot.perform("delete", [keys[0]], delete)
        return
    chosen = list(dict.fromkeys(keys)) if draw < 0.5 else keys[:1]
    writes = [(key, str(slot.fresh())) for key in chosen]

    async def put() -> dict[str, Any]:
        return {"revision": (await slot.client.txn([], [], writes)).revision}

    await slot.perform("write", [list(write) for write in writes], put)


async def _watcher(slot: Slot) -> None:
    latest = 0
    while not slot.load.is_stopping():
        rng, draw = slot.rng, slot.rng.random()
        if latest == 0 or draw < 0.25:
            start = 0
        elif draw < 0.5:
            start = max(1, latest - rng.randrange(100))
        elif draw < 0.65:
            start = latest + 1 + rng.randrange(20)
        else:
            start = latest + 1
        asked = {
            "prefix": rng.choice(WATCH_PREFIXES),
            "start": start,
            "prev": rng.random() < 0.5,
            "no_put": rng.random() < 0.1,
            "no_delete": rng.random() < 0.1,
        }
        seconds = rng.uniform(0.5, 4.0)
        completed = await slot.perform(
            "watch", asked, partial(_watched, slot, asked, seconds), reads_only=True
        )
        if completed is not None:
            shown = [event[0] for batch in completed["batches"] for event in batch]
            latest = max([latest, completed["created"] or 0, *shown])
            if completed["compacted"]:
                latest = max(latest, completed["compacted"])


async def _watched(slot: Slot, asked: dict[str, Any], seconds: float) -> dict[str, Any]:
    """What a watch delivered. Once it was created, however it ends, what it delivered counts."""
    seen: dict[str, Any] = {"created": None, "batches": [], "progress": [], "compacted": 0, "end": "stopped"}
    replies = slot.client.watch(
        asked["prefix"],
        asked["start"],
        previous=asked["prev"],
        no_put=asked["no_put"],
        no_delete=asked["no_delete"],
    )
    deadline = time.monotonic() + seconds
    count = 0
    try:
        while count < WATCH_EVENTS_MAX and not slot.load.is_stopping():
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                reply = await anext(replies, None)
            if reply is None:
                seen["end"] = "ended"
                break
            count += len(reply.events)
            _take(seen, reply)
            if reply.canceled:
                seen["end"] = "canceled"
                break
    except TimeoutError:
        seen["end"] = "stopped"
    except CertainFailureError as error:
        if seen["created"] is None:
            raise
        seen["end"] = str(error)
    finally:
        await replies.aclose()  # type: ignore[attr-defined]  # every client's watch is a generator
    if seen["created"] is None:
        raise CertainFailureError("the watch was not created in time")
    return seen


def _take(seen: dict[str, Any], reply: WatchReply) -> None:
    if reply.created:
        seen["created"] = reply.revision
    if reply.compacted:
        seen["compacted"] = reply.compacted
    if reply.events:
        names = ("mod", "type", "key", "value", "create", "version", "prev")
        seen["batches"].append([[event[name] for name in names] for event in reply.events])
    elif not reply.created and not reply.canceled:
        seen["progress"].append([reply.revision, len(seen["batches"])])


# --- locks ---


class Resource:
    """What the lock protects: a number in another process, read, thought about, and written back."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def ask(self, **request: Any) -> dict[str, Any]:
        """One request on a connection of its own. Raises OSError when the resource is down."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(json.dumps(request).encode() + b"\n")
            answer: dict[str, Any] = json.loads(await reader.readline())
            return answer
        finally:
            writer.close()


class KeepAlive:
    """Keeps one lease alive until told to stop."""

    def __init__(self, slot: Slot, lease: int) -> None:
        self._slot = slot
        self._lease = lease
        self._task = asyncio.get_running_loop().create_task(self._keep_alive())

    async def _keep_alive(self) -> None:
        while True:
            await asyncio.sleep(LOCK_TTL_S / 4)
            try:
                if await self._slot.client.lease_keep_alive(self._lease) == 0:
                    return
            except (CertainFailureError, UnknownOutcomeError):
                continue

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


async def lock(slot: Slot) -> None:
    """A lock without fencing: exclusion is only as good as the holder's clock and luck."""
    await _locker(slot, fenced=False)


async def fenced_lock(slot: Slot) -> None:
    """A lock whose token the resource checks: a client that lost the lock cannot write any more."""
    await _locker(slot, fenced=True)


async def _locker(slot: Slot, *, fenced: bool) -> None:
    resource = Resource(slot.load.spec.options["resource_port"])
    while not slot.load.is_stopping():
        granted = await slot.perform("grant", LOCK_TTL_S, partial(_grant, slot))
        if granted is None:
            continue
        keep_alive = KeepAlive(slot, granted["lease"])
        try:
            await _lock_once(slot, resource, granted["lease"], fenced)
        finally:
            await keep_alive.stop()
        await slot.perform("revoke", granted["lease"], partial(_revoke, slot, granted["lease"]))
        await slot.pace()


async def _grant(slot: Slot, ttl_s: int = LOCK_TTL_S) -> dict[str, Any]:
    lease, ttl = await slot.client.lease_grant(ttl_s)
    return {"lease": lease, "ttl": ttl}


async def _revoke(slot: Slot, lease: int) -> dict[str, Any]:
    return {"lease": lease, "revision": await slot.client.lease_revoke(lease)}


async def _lock_once(slot: Slot, resource: Resource, lease: int, fenced: bool) -> None:
    name = slot.rng.choice(LOCK_NAMES)
    doomed = slot.rng.random() < DOOMED_SHARE
    asked = {"name": name, "lease": lease, "doomed": doomed}
    held = await slot.perform("acquire", asked, lambda: _acquire(slot, name, lease, doomed))
    if held is None or held["revoked"] is not None:
        return
    token = held["token"] if fenced else None
    await slot.perform("update", {"name": name, "token": token}, lambda: _update(slot, resource, name, token))
    key = held["key"]

    async def release() -> dict[str, Any]:
        return {"name": name, "token": held["token"], "revision": await slot.client.unlock(key)}

    await slot.perform("release", {"name": name, "token": held["token"]}, release)


async def _acquire(slot: Slot, name: str, lease: int, doomed: bool) -> dict[str, Any]:
    waiting = asyncio.get_running_loop().create_task(slot.client.lock(name, lease, LOCK_PATIENCE_S))
    revoked = None
    try:
        if doomed:
            await asyncio.wait([waiting], timeout=slot.rng.uniform(0.02, 0.2))
            if not waiting.done():
                revoked = await slot.client.lease_revoke(lease)
        key, token = await waiting
    finally:
        waiting.cancel()
        await asyncio.wait([waiting])
        if not waiting.cancelled():
            waiting.exception()
    return {"name": name, "key": key, "token": token, "lease": lease, "revoked": revoked}


async def _update(slot: Slot, resource: Resource, name: str, token: int | None) -> dict[str, Any]:
    try:
        base = await resource.ask(op="read", name=name, token=token)
        await slot.load.sleep(slot.rng.uniform(*HOLD_S))
        written = await resource.ask(op="write", name=name, token=token, base=base["version"])
    except (OSError, ValueError) as error:
        raise UnknownOutcomeError(f"the resource: {error}") from None
    return {"name": name, "token": token, "base": base["version"], **written}


# --- leases ---


async def lease(slot: Slot) -> None:
    """A key attached to a lease: kept alive for a while, left to expire or revoked, and observed until it is
    gone."""
    while not slot.load.is_stopping():
        granted = await slot.perform("grant", LEASE_TTL_S, partial(_grant, slot, LEASE_TTL_S))
        if granted is not None:
            await _one_life(slot, granted["lease"])
        await slot.pace()


async def _one_life(slot: Slot, number: int) -> None:
    key = f"lease/{slot.fresh()}"

    async def attach() -> dict[str, Any]:
        return {"lease": number, "key": key, "revision": await slot.client.put(key, "1", lease=number)}

    async def keep_alive() -> dict[str, Any]:
        return {"lease": number, "ttl": await slot.client.lease_keep_alive(number)}

    async def observe() -> dict[str, Any]:
        revision, held = await slot.client.get(key)
        return {"lease": number, "key": key, "revision": revision, "present": held.value is not None}

    if await slot.perform("attach", {"lease": number, "key": key}, attach) is None:
        return
    for _ in range(slot.rng.randrange(4)):
        await slot.load.sleep(LEASE_TTL_S * slot.rng.uniform(0.1, 0.6))
        await slot.perform("keep_alive", {"lease": number}, keep_alive)
        await slot.perform("observe", {"lease": number, "key": key}, observe, reads_only=True)
    if slot.rng.random() < 0.2:
        await slot.perform("revoke", number, partial(_revoke, slot, number))
    for _ in range(GONE_PATIENCE):
        seen = await slot.perform("observe", {"lease": number, "key": key}, observe, reads_only=True)
        if slot.load.is_stopping() or (seen is not None and not seen["present"]):
            break
        await slot.load.sleep(LEASE_TTL_S * slot.rng.uniform(0.1, 0.5))
    await slot.perform("observe", {"lease": number, "key": key}, observe, reads_only=True)
