"""The calls of aetcd's users: put, get, ranges, delete, transactions, status, members, compaction.

python aetcd_calls.py PORT PREFIX
"""

import asyncio
import sys

import aetcd


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


async def main() -> None:
    port, prefix = int(sys.argv[1]), sys.argv[2].encode()
    async with aetcd.Client(host="127.0.0.1", port=port, timeout=10) as client:
        for group in (keys, ranges, transactions, cluster, compaction):
            await group(client, prefix)
            print(group.__name__, "passed")
    print("all passed")


asyncio.run(main())
