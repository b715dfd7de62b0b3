"""Our verbs and the real etcdctl, step by step on two clusters alike: same output, errors and exit codes.

Both walk the same steps from an empty store, each on a fresh etcd with the same addresses, so that
ids, revisions and log positions are the same too. Left out are steps where we differ on purpose: a
form that cannot show a reply is refused before anything is sent, where etcdctl writes first; quotes in
transactions work; what makes etcdctl panic is an error.
"""

import re

import pytest

TXN = b'mod("a") > "0"\n\nput a 5\nget a\ndel b\n\nget c\n\n'

# command line, with shell-like spaces; or (command line, standard input)
STEPS = [
    "put a 1",
    "put b 2",
    "put --prev-kv a 11",
    "put a",
    ("put a", b"from stdin"),
    ("put a", b"\xff\x00\n"),
    "get a",
    "get a -w fields",
    "put a -- -x",
    "put --lease=zz a b",
    "put --lease=fffffffffffffffff a b",
    "put --lease=1234 a b",
    "put a --ignore-value",
    "put a b --ignore-value",
    "put zzz --ignore-value",
    "put a x --ignore-lease",
    "put",
    "put '' x",
    "put a 1 -w json",
    "put a 2 -w fields --prev-kv",
    "put a 3 -w json --prev-kv",
    "put a 3 -w protobuf",
    "put a 4 --prev-kv --hex",
    "put a 4 -w nonsense",
    "get",
    "get a",
    "get a b c",
    "get --prefix ''",
    "get a -w json",
    "get -wjson a",
    "get -w=json a",
    "get --prefix '' -w fields",
    "get --prefix=true '' -w fields",
    "get --prefix=false a",
    "get a -w table",
    "get a -w protobuf",
    "get a --hex",
    "get a --hex=true",
    "get a --hex -w json",
    "get a --hex -w fields",
    "get a --print-value-only",
    "get a --print-value-only -w json",
    "get '' --prefix --keys-only",
    "get '' --prefix --keys-only -w json",
    "get '' --prefix --count-only",
    "get '' --prefix --count-only -w fields",
    "get '' --prefix --count-only -w json",
    "get a --rev 2",
    "get a --rev 999",
    "get a --rev=-5",
    "get '' --prefix --sort-by MODIFY --order DESCEND",
    "get '' --prefix --sort-by create --order descend",
    "get '' --prefix --sort-by KEY --order ASCEND",
    "get '' --prefix --sort-by VERSION",
    "get '' --prefix --sort-by VALUE --order DESCEND --limit 1",
    "get a --sort-by nonsense",
    "get a --order nonsense",
    "get a --consistency s",
    "get a --consistency=x",
    "get '' --prefix --limit 1",
    "get '' --prefix --limit 1 -w json",
    "get a b --prefix",
    "get a --prefix --from-key",
    "get a --from-key",
    "get '' --from-key",
    "get a c",
    "get --print-value-only --keys-only a",
    "get a --count-only --keys-only",
    "get nope",
    "get nope -w json",
    "get nope -w fields",
    "g a",
    ("txn", TXN),
    ("txn -i", TXN),
    ("txn", b'mod("a") = "0"\n\nput a 5\n\nget a\nget b\ndel b\n\n'),
    ("txn -w json", b'mod("a") = "0"\n\nput a 5\n\nget a\nget b\ndel b\n\n'),
    ("txn -w json", b"\nput a 5 --prev-kv\nget a\ndel b\n\n\n"),
    ("txn -w fields", b'\nput a 5 --prev-kv\nget "" --prefix\ndel b\n\n\n'),
    ("txn", b'val("a") = "5"\nver("a") > "0"\nc("a") < "1000"\n\nput a "x y"\nput k q\n\n\n'),
    ("txn", b'create("a") != "7"\n\nget a\n\n\n'),
    ("txn", b'val("a") = `x y`\nversion("a") != "99"\nm("a") != "0"\nvalue("k") > "a"\n\nget a\n\n\n'),
    ("txn", b'val("a") = "\\x78\\u0020\\171"\n\nget a\n\n\n'),
    ("txn", b'foo("a") = "5"\n\nput a "x y"\n\n\n'),
    ("txn", b'val(a) = "5"\n\nput a "x y"\n\n\n'),
    ("txn", b'val("a" = "5"\n\nput a "x y"\n\n\n'),
    ("txn", b'val("a") =\n\nput a "x y"\n\n\n'),
    ("txn", b'val("a")="5"\n\nput a "x y"\n\n\n'),
    ("txn", b'mod("a") = "x"\n\nput a "x y"\n\n\n'),
    ("txn", b'garbage\n\nput a "x y"\n\n\n'),
    ("txn", b"\nfoo a\n\n\n"),
    ("txn", b"\nput\n\n\n"),
    ("txn", b"\nput a\n\n\n"),
    ("txn", b"\nput a 1 2\n\n\n"),
    ("txn", b'\nput a "x\n\n\n'),
    ("txn", b'\nput a "x y" \n\n'),
    ("txn", b""),
    ("txn", b"\n"),
    ("txn", b"\nput a 1\nput a 2\n\n\n"),
    ("txn", b"\nget a --rev 1000\n\n\n"),
    ("txn", b"\nget a --consistency s\nget a --order x\n\n\n"),
    ("txn", b'\nput a "1\\n2"\nget a\n\n\n'),
    ("txn", b"\nput a 1\nget a --print-value-only\nget a --keys-only\n\n\n"),
    ("txn", b"\nput a 1 --lease=77\n\n\n"),
    ("txn", b'\ndel "" --prefix --prev-kv\n\n\n'),
    "txn extra",
    "put a 1",
    "put b 2",
    "put c 3",
    "del",
    "del a b --prefix",
    "del a --prefix --from-key",
    "del nope",
    "del a --prev-kv",
    "del b -w json --prev-kv",
    "del '' --prefix -w fields --prev-kv",
    "del a --from-key",
    "del a b c",
    "compaction",
    "compaction x",
    "compaction 3 4",
    "compaction 0",
    "compaction 5 -w json",
    "compaction 5",
    "compact 6 --physical",
    "compaction 99999",
    "get a --rev 2",
    "endpoint hashkv",
    "endpoint hashkv -w json",
    "endpoint hashkv -w table",
    "endpoint hashkv -w fields",
    "endpoint hashkv -w protobuf",
    "endpoint hashkv --cluster",
    "endpoint hashkv --rev 7",
    "endpoint hashkv --rev 99999",
    "defrag",
    "defrag --cluster",
    "defrag -w json",
    "make-mirror",
    "make-mirror a b",
    "member list",
    "member list -w json",
    "member list -w table",
    "member list -w fields",
    "member list --hex -w json",
    "alarm list",
    "alarm list -w json",
    "alarm list -w fields",
    "alarm disarm",
    "endpoint status",
    "endpoint status -w json",
    "endpoint status -w table",
    "endpoint status -w fields",
    "endpoint status -w protobuf",
    "endpoint status --cluster",
    "endpoint --cluster status",
    "endpoint health",
    "endpoint health -w json",
    "endpoint health -w table",
    "endpoint health -w fields",
    "endpoint health -w protobuf",
    "endpoint health --cluster",
    "--endpoints=127.0.0.1:1 get a --command-timeout=300ms",
    "--endpoints=127.0.0.1:1 put a 1 --command-timeout=300ms",
    "--endpoints=127.0.0.1:1 endpoint health --command-timeout=300ms",
    "--endpoints=127.0.0.1:1 endpoint health -w json --command-timeout=300ms",
    "--endpoints=127.0.0.1:1 endpoint status --command-timeout=300ms",
    "--endpoints=127.0.0.1:1 endpoint status -w json --command-timeout=300ms",
    "--endpoints=127.0.0.1:1 endpoint status -w table --command-timeout=300ms",
    "--endpoints=127.0.0.1:1 endpoint hashkv --command-timeout=300ms",
    "--endpoints=127.0.0.1:1 endpoint status --endpoints=127.0.0.1:2,127.0.0.1:3 --command-timeout=300ms",
    "--endpoints=127.0.0.1:1 --endpoints=127.0.0.1:2 endpoint status --command-timeout=300ms",
    "--endpoints= get a --endpoints=127.0.0.1:1 --command-timeout=300ms",
    "--endpoints=127.0.0.1:1 defrag --command-timeout=300ms",
    "--endpoints=127.0.0.1:1 member list --command-timeout=300ms",
    "--endpoints= get a",
]  # fmt: skip

# What etcdctl prints as a whole page of usage before it: only the line counts.
MISUSES = [
    "get a --limit=x",
    "get a --prefix=maybe",
    "get --nonsense",
    "put a b --lease",
    "get a --command-timeout=nonsense",
    "get a --command-timeout=5",
    "get a --command-timeout=",
    "get a --command-timeout=1h2",
    "get a --command-timeout=1.5.2s",
    "get a --command-timeout=.s",
    "get a --command-timeout=+1d",
    "get a --command-timeout=9999999999h",
    "get a --dial-timeout=5ö",
    "get -xyz",
    "watch -ix a",
    "get a -w",
    "get a --command-timeout",
    "lock --ttl=abc x",
    "nonsense",
    "gte a",
    "e",
    "m",
]


def words(line):
    return [word.strip("'") for word in line.split()]


def walk(run, endpoint):
    found = []
    for step in STEPS:
        line, stdin = step if isinstance(step, tuple) else (step, b"")
        args = words(line)
        if not line.startswith("--endpoints"):
            args.append(f"--endpoints={endpoint}") if "--" not in args else args.insert(
                0, f"--endpoints={endpoint}"
            )
        found.append(run(args, stdin))
    return found


def plain(outcome):
    """Without what differs from run to run: how long a check took, the size of the file.

    And without why no connection could be made, which etcdctl says in a line of its log.
    """

    def neutral(data):
        data = re.sub(rb": last error: connection refused \(127.0.0.1:\d\)", b"", data)
        data = re.sub(rb"\d+(\.\d+)?(ms|\xc2\xb5s|s)\b", b"TOOK", data)
        data = re.sub(rb"\d+ kB", b"SIZE", data)
        data = re.sub(rb'("dbSize(?:InUse)?":|"DBSize" : )\d+', rb"\1SIZE", data)
        # a table is as wide as its cells
        return re.sub(rb"-{3,}", b"---", re.sub(rb" {2,}", b" ", data)) if b"TOOK" in data else data

    return outcome.code, neutral(outcome.out), neutral(outcome.err)


@pytest.mark.slow
def test_every_step_looks_the_same(ours, etcdctl, start_etcd, free_ports, tmp_path):
    ports = free_ports(2)
    endpoint = f"127.0.0.1:{ports[0]}"
    with start_etcd(tmp_path / "theirs", *ports):
        theirs_found = walk(etcdctl, endpoint)
    with start_etcd(tmp_path / "ours", *ports):
        ours_found = walk(ours, endpoint)
    differences = [
        f"{step}\n  etcdctl: {plain(theirs)}\n  ours:    {plain(own)}"
        for step, theirs, own in zip(STEPS, theirs_found, ours_found, strict=True)
        if plain(theirs) != plain(own)
    ]
    assert not differences, "\n".join(differences)
    unreachable = [found for step, found in zip(STEPS, ours_found, strict=True) if "127.0.0.1:1 " in step]
    assert unreachable
    assert all(b"connection refused" in found.out + found.err for found in unreachable)
    codes = {outcome.code for outcome in ours_found}
    assert codes == {0, 1, 2, 3, 4, 128}  # the steps reach every exit code but interruption and I/O


@pytest.mark.parametrize("line", MISUSES)
def test_misuse_is_named_in_the_same_line(line, ours, etcdctl):
    theirs, own = etcdctl(words(line)), ours(words(line))
    assert own.code == theirs.code == 1
    first = own.err.splitlines()[0]
    assert first.startswith(b"Error: ")
    assert first.replace(b'"kvstore"', b'"etcdctl"') in theirs.err.splitlines()


def test_variables_count_as_flags(ours, etcdctl, start_etcd, free_ports, tmp_path, monkeypatch):
    ports = free_ports(2)
    with start_etcd(tmp_path / "etcd", *ports):
        monkeypatch.setenv("ETCDCTL_ENDPOINTS", f"127.0.0.1:{ports[0]}")
        monkeypatch.setenv("ETCDCTL_API", "3")
        assert ours(["put", "a", "1"]).out == b"OK\n"
        monkeypatch.setenv("ETCDCTL_WRITE_OUT", "json")
        own = ours(["get", "a"])
        theirs = etcdctl(["get", "a", "-w", "json", f"--endpoints=127.0.0.1:{ports[0]}"])
        assert own == theirs
