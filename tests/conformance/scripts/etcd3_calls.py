"""The calls of etcd3's users: keys, ranges, transactions, watches, leases, locks, status, compaction.

python etcd3_calls.py calls PORT PREFIX       every group once
python etcd3_calls.py failover PORT PREFIX    asks for the leader's death by the line KILL and goes on;
                                              PORT is a follower's
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator

import etcd3

PATIENCE_S = 30.0


def keys(client: etcd3.Etcd3Client, prefix: str) -> None:
    assert client.get(prefix + "none") == (None, None)
    first = client.put(prefix + "a", "1")
    second = client.put(prefix + "a", "2", prev_kv=True)
    assert second.header.revision == first.header.revision + 1
    assert second.prev_kv.value == b"1"
    value, meta = client.get(prefix + "a")
    assert (value, meta.version, meta.mod_revision) == (b"2", 2, second.header.revision)
    assert meta.create_revision == first.header.revision
    assert client.get(prefix + "a", serializable=True)[0] in (b"1", b"2")
    assert client.put_if_not_exists(prefix + "b", "1")
    assert not client.put_if_not_exists(prefix + "b", "2")
    assert client.delete(prefix + "a", prev_kv=True, return_response=True).prev_kvs[0].value == b"2"
    assert not client.delete(prefix + "a")


def ranges(client: etcd3.Etcd3Client, prefix: str) -> None:
    prefix += "ranges/"
    for name in "cab":
        client.put(prefix + name, name * 2)
    assert [value for value, _ in client.get_prefix(prefix)] == [b"aa", b"bb", b"cc"]
    ordered = client.get_prefix(prefix, sort_order="descend", sort_target="value")
    assert [value for value, _ in ordered] == [b"cc", b"bb", b"aa"]
    assert len(list(client.get_range(prefix + "a", prefix + "c"))) == 2
    assert len(list(client.get_all())) >= 3
    assert client.delete_prefix(prefix).deleted == 3
    assert list(client.get_prefix(prefix)) == []


def transactions(client: etcd3.Etcd3Client, prefix: str) -> None:
    key = prefix + "t"
    compare = [client.transactions.version(key) == 0]
    success = [client.transactions.put(key, "won"), client.transactions.get(key)]
    failure = [client.transactions.get(key)]
    won, replies = client.transaction(compare=compare, success=success, failure=failure)
    assert won
    assert replies[1][0][0] == b"won"
    won, replies = client.transaction(compare=compare, success=success, failure=failure)
    assert not won
    assert replies[0][0][0] == b"won"
    assert client.replace(key, "won", "lost")
    assert not client.replace(key, "won", "again")


def cluster(client: etcd3.Etcd3Client, prefix: str) -> None:
    status = client.status()
    assert status.version.startswith("3.5.")
    assert status.leader is not None
    members = list(client.members)
    assert len(members) == 3
    assert all(member.name and member.peer_urls and member.client_urls for member in members)


def compaction(client: etcd3.Etcd3Client, prefix: str) -> None:
    old = client.put(prefix + "z", "1").header.revision
    new = client.put(prefix + "z", "2").header.revision
    client.compact(new)
    said = ""
    try:
        client.compact(old)
    except Exception as error:  # noqa: BLE001 -- the client lets the transport's error through
        said = str(error)
    assert "compacted" in said, said


def watches(client: etcd3.Etcd3Client, prefix: str) -> None:
    first = client.put(prefix + "a", "0")
    live, cancel = client.watch_prefix(prefix, prev_kv=True)
    client.put(prefix + "a", "1")
    client.delete(prefix + "a")
    changed, deleted = take(live, 2)
    assert isinstance(changed, etcd3.events.PutEvent)
    assert (changed.value, changed.prev_value) == (b"1", b"0")
    assert isinstance(deleted, etcd3.events.DeleteEvent)
    assert deleted.prev_value == b"1"
    cancel()
    replay, cancel = client.watch_prefix(prefix, start_revision=first.header.revision)
    assert [event.mod_revision for event in take(replay, 3)] == [
        first.header.revision,
        changed.mod_revision,
        deleted.mod_revision,
    ]
    cancel()


def take(events: Iterator[etcd3.events.Event], count: int) -> list[etcd3.events.Event]:
    return list(itertools.islice(events, count))


def leases(client: etcd3.Etcd3Client, prefix: str) -> None:
    lease = client.lease(60)
    for name in "ba":
        client.put(prefix + name, "1", lease=lease)
    assert sorted(lease.keys) == [(prefix + "a").encode(), (prefix + "b").encode()]
    assert lease.granted_ttl == 60
    assert 50 < lease.remaining_ttl <= 60
    (kept_alive,) = lease.refresh()
    assert kept_alive.TTL == 60
    lease.revoke()
    assert list(client.get_prefix(prefix)) == []
    assert client.get_lease_info(lease.id).TTL == -1
    short = client.lease(1)
    ends, cancel = client.watch(prefix + "short")
    client.put(prefix + "short", "1", lease=short)
    assert isinstance(take(ends, 2)[1], etcd3.events.DeleteEvent)
    cancel()


def locks(client: etcd3.Etcd3Client, prefix: str) -> None:
    # one after the other: with the tenacity of today the package fails as soon as it must wait
    for _ in range(2):
        lock = client.lock(prefix + "m", ttl=60)
        assert lock.acquire()
        assert lock.is_acquired()
        (kept_alive,) = lock.refresh()
        assert kept_alive.TTL == 60
        assert lock.release()
        assert not lock.is_acquired()


def failover(client: etcd3.Etcd3Client, prefix: str) -> None:
    writes = 60
    lease = client.lease(60)
    client.put(prefix + "leased", "1", lease=lease)
    lock = client.lock(prefix + "m", ttl=60)
    assert lock.acquire()
    watch, cancel = client.watch_prefix(prefix + "k")
    names = [f"{prefix}k{number:03d}" for number in range(writes)]
    for number, name in enumerate(names):
        if number == writes // 2:
            print("KILL", flush=True)
            sys.stdin.readline()
        deadline = time.monotonic() + PATIENCE_S
        while True:  # a put of unknown outcome may be repeated: the key is its own
            try:
                client.put(name, "1")
                break
            except etcd3.exceptions.Etcd3Exception as error:
                if time.monotonic() > deadline:
                    raise TimeoutError("no put after the leader's death") from error
                time.sleep(0.02)
    pairs = [(meta.key.decode(), meta.version) for _, meta in client.get_prefix(prefix + "k")]
    assert [key for key, _ in pairs] == names
    events = take(watch, sum(version for _, version in pairs))
    revisions = [event.mod_revision for event in events]
    assert revisions == sorted(set(revisions))
    assert list(dict.fromkeys(event.key.decode() for event in events)) == names
    cancel()
    assert client.get(prefix + "leased")[0] == b"1"
    (kept_alive,) = lease.refresh()
    assert kept_alive.TTL == 60
    assert lock.is_acquired()
    assert lock.release()
    lease.revoke()


CALLS = (keys, ranges, transactions, watches, leases, locks, cluster, compaction)


def main() -> None:
    mode, port, prefix = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    client = etcd3.client(host="127.0.0.1", port=port, timeout=10)
    for group in CALLS if mode == "calls" else (failover,):
        group(client, prefix + group.__name__ + "/")
        print(group.__name__, "passed")
    print("all passed")


main()
