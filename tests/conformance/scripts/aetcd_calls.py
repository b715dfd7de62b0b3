"""The calls of aetcd's users: keys, ranges, transactions, watches, leases, locks, status, compaction.

python aetcd_calls.py calls PORT PREFIX       every group once
python aetcd_calls.py failover PORT PREFIX    asks for the leader's death by the line KILL and goes on;
                                              PORT is a follower's
"""

import asyncio
import sys
import time

import aetcd

PATIENCE_S = 30.0


async def keys(client: aetcd.Client, prefix: bytes) -> None:
    assert await client.get(prefix + b"none") is None
    first = await client.put(prefix + b"a", b"1")
    second = await client.put(prefix + b"a", b"2", prev_kv=True)
    assert second.header.revision == first.header.revision + 1
    assert second.prev_kv.value == b"1"
    got = await client.get(prefix + b"a")
    assert (got.value, got.version, got.mod_revision) == (b"2", 2, second.header.revision)
    assert got.create_revision == first.header.revision
    assert (await client.get(prefix + b"a", serializable=True)).value in (b"1", b"2")
    deleted = await client.delete(prefix + b"a", prev_kv=True)
    assert deleted.prev_kv.value == b"2"
    assert await client.delete(prefix + b"a") is None


async def ranges(client: aetcd.Client, prefix: bytes) -> None:
    for name in (b"c", b"a", b"b"):
        await client.put(prefix + name, name * 2)
    assert [kv.key for kv in await client.get_prefix(prefix)] == [prefix + n for n in (b"a", b"b", b"c")]
    ordered = await client.get_prefix(prefix, sort_order="descend", sort_target="value")
    assert [kv.value for kv in ordered] == [b"cc", b"bb", b"aa"]
    assert len(list(await client.get_range(prefix + b"a", prefix + b"c"))) == 2
    assert len(list(await client.get_prefix(prefix, keys_only=True))) == 3
    assert (await client.delete_prefix(prefix)).deleted == 3
    assert list(await client.get_prefix(prefix)) == []


async def transactions(client: aetcd.Client, prefix: bytes) -> None:
    key = prefix + b"t"
    compare = [client.transactions.version(key) == 0]
    success = [client.transactions.put(key, b"won"), client.transactions.get(key)]
    failure = [client.transactions.get(key)]
    won, replies = await client.transaction(compare=compare, success=success, failure=failure)
    assert won
    assert replies[1][0][0] == b"won"
    won, replies = await client.transaction(compare=compare, success=success, failure=failure)
    assert not won
    assert replies[0][0][0] == b"won"
    assert await client.replace(key, b"won", b"lost")
    assert not await client.replace(key, b"won", b"again")


async def cluster(client: aetcd.Client, prefix: bytes) -> None:
    status = await client.status()
    assert status.version.startswith("3.5.")
    assert status.leader is not None
    members = [member async for member in client.members()]
    assert len(members) == 3
    assert all(member.name and member.peer_urls and member.client_urls for member in members)


async def compaction(client: aetcd.Client, prefix: bytes) -> None:
    old = (await client.put(prefix + b"z", b"1")).header.revision
    new = (await client.put(prefix + b"z", b"2")).header.revision
    await client.compact(new)
    said = ""
    try:
        await client.compact(old)
    except aetcd.exceptions.ClientError as error:
        said = str(error)
    assert "compacted" in said, said


async def watches(client: aetcd.Client, prefix: bytes) -> None:
    first = await client.put(prefix + b"a", b"0")
    live = await client.watch_prefix(prefix, prev_kv=True)
    await client.put(prefix + b"a", b"1")
    await client.delete(prefix + b"a")
    changed, deleted = await take(live, 2)
    assert (changed.kind, changed.kv.value, changed.prev_kv.value) == (aetcd.EventKind.PUT, b"1", b"0")
    assert (deleted.kind, deleted.prev_kv.value) == (aetcd.EventKind.DELETE, b"1")
    replay = await client.watch_prefix(prefix, start_revision=first.header.revision)
    assert [event.kv.mod_revision for event in await take(replay, 3)] == [
        first.header.revision,
        changed.kv.mod_revision,
        deleted.kv.mod_revision,
    ]
    once = await client.watch_once(
        prefix + b"a", timeout=PATIENCE_S, start_revision=first.header.revision, kind=aetcd.EventKind.DELETE
    )
    assert once.kv.mod_revision == deleted.kv.mod_revision
    await live.cancel()


async def take(watch: aetcd.rtypes.Watch, count: int) -> list[aetcd.rtypes.Event]:
    found = []
    async with asyncio.timeout(PATIENCE_S):
        async for event in watch:
            found.append(event)
            if len(found) == count:
                break
    return found


async def leases(client: aetcd.Client, prefix: bytes) -> None:
    lease = await client.lease(60)
    for name in (b"b", b"a"):
        await client.put(prefix + name, b"1", lease=lease)
    assert sorted(await lease.keys()) == [prefix + b"a", prefix + b"b"]
    assert await lease.granted_ttl() == 60
    assert 50 < await lease.remaining_ttl() <= 60
    assert (await lease.refresh()).TTL == 60
    await lease.revoke()
    assert list(await client.get_prefix(prefix)) == []
    assert (await client.get_lease_info(lease.id)).TTL == -1
    short = await client.lease(1)
    await client.put(prefix + b"short", b"1", lease=short)
    ended = await client.watch_once(prefix + b"short", timeout=PATIENCE_S, kind=aetcd.EventKind.DELETE)
    assert ended.kv.key == prefix + b"short"


async def locks(client: aetcd.Client, prefix: bytes) -> None:
    first, second = client.lock(prefix + b"m"), client.lock(prefix + b"m")
    assert await first.acquire()
    assert await first.is_acquired()
    assert not await second.acquire(timeout=0)
    waiting = asyncio.ensure_future(second.acquire(timeout=PATIENCE_S))
    await first.refresh()
    assert await first.release()
    assert await waiting
    assert not await first.is_acquired()
    assert await second.release()


async def failover(client: aetcd.Client, prefix: bytes) -> None:
    writes = 60
    lease = await client.lease(60)
    await client.put(prefix + b"leased", b"1", lease=lease)
    lock = client.lock(prefix + b"m", ttl=60)
    assert await lock.acquire()
    watch = await client.watch_prefix(prefix + b"k")
    names = [prefix + b"k%03d" % number for number in range(writes)]
    for number, name in enumerate(names):
        if number == writes // 2:
            print("KILL", flush=True)
            await asyncio.to_thread(sys.stdin.readline)
        deadline = time.monotonic() + PATIENCE_S
        while True:  # a put of unknown outcome may be repeated: the key is its own
            try:
                await client.put(name, b"1")
                break
            except aetcd.exceptions.ClientError as error:
                if time.monotonic() > deadline:
                    raise TimeoutError("no put after the leader's death") from error
                await asyncio.sleep(0.02)
    pairs = list(await client.get_prefix(prefix + b"k"))
    assert [pair.key for pair in pairs] == names
    events = await take(watch, sum(pair.version for pair in pairs))
    revisions = [event.kv.mod_revision for event in events]
    assert revisions == sorted(set(revisions))
    assert list(dict.fromkeys(event.kv.key for event in events)) == names
    assert (await client.get(prefix + b"leased")).value == b"1"
    assert (await lease.refresh()).TTL == 60
    assert not await client.lock(prefix + b"m").acquire(timeout=0)
    assert await lock.release()
    await lease.revoke()


CALLS = (keys, ranges, transactions, watches, leases, locks, cluster, compaction)


async def main() -> None:
    mode, port, prefix = sys.argv[1], int(sys.argv[2]), sys.argv[3].encode()
    async with aetcd.Client(host="127.0.0.1", port=port, timeout=10) as client:
        for group in CALLS if mode == "calls" else (failover,):
            await group(client, prefix + group.__name__.encode() + b"/")
            print(group.__name__, "passed")
    print("all passed")


asyncio.run(main())
