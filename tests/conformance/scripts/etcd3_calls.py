"""The calls of etcd3's users: put, get, ranges, delete, transactions, status, members, compaction.

python etcd3_calls.py PORT PREFIX
"""

import sys

import etcd3


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


def main() -> None:
    port, prefix = int(sys.argv[1]), sys.argv[2]
    client = etcd3.client(host="127.0.0.1", port=port, timeout=10)
    for group in (keys, ranges, transactions, cluster, compaction):
        group(client, prefix)
        print(group.__name__, "passed")
    client.close()
    print("all passed")


main()
