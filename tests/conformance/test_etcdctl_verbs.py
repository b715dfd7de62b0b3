"""etcdctl 3.5 and 3.4, line by line, against this store and etcd: the same output, errors and exit codes.

Each release walks the same lines on two fresh servers, so revisions are the same too. Forgiven are the ids of
clusters, members and leases, terms, addresses, times and sizes.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from bench import clusters

LINE_SECONDS_MAX = 30.0


class Line(NamedTuple):
    """One command line; `{lease}` stands for the lease granted last."""

    words: str
    stdin: str = ""
    until: int = 0
    """Ends by itself when 0; else it is interrupted once it has printed so many lines, which must be all it
    has to say: what comes after them is compared too."""


def block(text: str) -> list[Line]:
    """Lines that end by themselves and read nothing."""
    return [Line(words.strip()) for words in text.strip().splitlines()]


LINES = [
    *block(
        """
        put a 1
        put a 2 --prev-kv
        put b 3 -w json
        put b 4 -w fields --prev-kv
        put a x --ignore-value
        put a --ignore-value
        put none --ignore-value
        put a x --ignore-lease
        put a x --lease=7b
        put
        get a
        get a -w json
        get a -w fields
        get a --hex
        get a c
        get --prefix ''
        get --from-key a
        get '' --prefix --keys-only
        get '' --prefix --count-only -w fields
        get '' --prefix --limit 1 -w json
        get '' --prefix --sort-by MODIFY --order DESCEND
        get '' --prefix --sort-by VALUE --order ASCEND
        get '' --prefix --sort-by CREATE --order DESCEND
        get '' --prefix --sort-by VERSION --order DESCEND
        get a --rev 2
        get a --rev 99
        get a --consistency s
        get a --print-value-only
        get none -w json
        get
        get a --order x
        """
    ),
    Line("txn", 'mod("a") > "0"\n\nput a 5\nget a\ndel b\n\nget c\n\n'),
    Line("txn -i", 'val("a") = "no"\n\nput a 6\n\nget a\nput c 7\n\n'),
    Line("txn -w json", 'ver("a") > "0"\ncreate("none") = "0"\n\nput d 8 --prev-kv\nget "" --prefix\n\n\n'),
    Line("txn -w fields", 'val("a") != "0"\n\nput d 9 --prev-kv\ndel c --prev-kv\n\n\n'),
    Line("txn", "\nput e 1\nput e 2\n\n\n"),
    Line("txn", "\nput e 1 --lease=7b\n\n\n"),
    Line("txn", "\nget a --rev 999\n\n\n"),
    *block(
        """
        del none
        del d --prev-kv
        del a e -w json --prev-kv
        del '' --prefix -w fields
        del
        """
    ),
    *block(
        """
        put w 1
        put w 2
        put x 3
        del w
        """
    ),
    Line("watch w --rev 2", until=9),
    Line("watch '' --prefix --rev 2 --prev-kv", until=78),
    Line("watch '' --prefix --rev 2 -w json", until=1),
    Line("watch '' --prefix --rev 2 -w fields", until=130),
    Line("watch x --rev 2 -- sh -c 'echo $ETCD_WATCH_EVENT_TYPE $ETCD_WATCH_KEY $ETCD_WATCH_VALUE'", until=4),
    Line("watch -i", "watch w --rev 2\n", until=9),
    Line("watch"),
    *block(
        """
        lease grant 60
        put l 1 --lease={lease}
        lease timetolive {lease}
        lease timetolive {lease} --keys
        lease timetolive {lease} -w json
        lease timetolive {lease} --keys -w fields
        get l -w json
        lease keep-alive --once {lease}
        lease list
        lease revoke {lease}
        get l
        lease timetolive {lease}
        lease revoke {lease}
        lease revoke zz
        lease grant x
        lease grant 9999999999
        lease grant 60 -w json
        lease keep-alive --once 7b
        lock m echo held
        lock m -- sh -c 'exit 3'
        lock
        elect e
        elect -l e v
        """
    ),
    Line("lock m2", until=2),
    Line("elect e one", until=2),
    *block(
        """
        compaction 3
        compaction 3
        compaction 999
        compaction
        compaction x
        get w --rev 2
        compaction 5 --physical
        compaction 6 -w json
        alarm list
        alarm disarm
        defrag
        alarm list -w json
        member list
        member list -w json
        member list -w fields
        endpoint health
        endpoint hashkv
        move-leader 7b
        member remove 7b
        member promote 7b
        member update 7b --peer-urls=http://127.0.0.1:1
        member add x --peer-urls=nonsense
        get '' --prefix -w fields
        """
    ),
    Line("watch w --rev 2"),
]


def etcdctls() -> dict[str, Path | None]:
    named = os.environ.get("KVSTORE_ETCDCTL_OLD") or "/usr/bin/etcdctl"
    return {"3.5": clusters.find_etcd("etcdctl"), "3.4": Path(named) if shutil.which(named) else None}


def plain(text: str, endpoint: str, lease: str) -> str:
    """Without what differs between two clusters, and without the log lines of the client."""
    lines = [line for line in text.splitlines() if not line.startswith('{"level"')]
    text = "\n".join(lines).replace(endpoint, "ENDPOINT")
    if lease:
        text = text.replace(lease, "LEASE").replace(str(int(lease, 16)), "LEASE")
    text = re.sub(r"lease [0-9a-f]{16} granted", "lease LEASE granted", text)
    text = re.sub(r"remaining\(\d+s\)", "LEFT", text)
    text = re.sub(r'("(?:cluster_id|member_id|raft_term|ID|lease|hash)":)\d+', r"\1ID", text)
    text = re.sub(r'("(?:ClusterID|MemberID|RaftTerm|ID|Lease|Hash)" : )\d+', r"\1ID", text)
    text = re.sub(r'("(?:ttl|TTL)":)(?!60\b)\d+|("TTL" : )(?!60\b)\d+', "LEFT", text)
    text = re.sub(r"ENDPOINT, \d+$", "ENDPOINT, HASH", text)
    text = re.sub(r"\b[0-9a-f]{10,16}\b", "ID", text)  # members and leases
    text = re.sub(r"http://127.0.0.1:\d+", "URL", text)
    text = re.sub(r"(ours|etcd)0", "NAME", text)
    return re.sub(r"took = \S+", "took = TIME", text)


class Walker:
    """One etcdctl on one server."""

    def __init__(self, program: Path, endpoint: str) -> None:
        self._program, self._endpoint = program, endpoint
        self._lease = ""

    def walk(self) -> Iterator[tuple[int, str, str]]:
        for line in LINES:
            yield self._run(line)

    def _run(self, line: Line) -> tuple[int, str, str]:
        words = re.findall(r"'[^']*'|\S+", line.words.replace("{lease}", self._lease or "0"))
        command = [str(self._program), f"--endpoints={self._endpoint}", *(word.strip("'") for word in words)]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("ETCD")}
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment | {"ETCDCTL_API": "3"},
        ) as process:
            timer = threading.Timer(LINE_SECONDS_MAX, process.kill)
            timer.start()
            try:
                out, err = self._talk(process, line)
            finally:
                timer.cancel()
                process.kill()
        assert process.returncode != -signal.SIGKILL, f"{line.words} did not end: {out!r}, {err!r}"
        granted = re.match(r"lease ([0-9a-f]{16}) granted", out)
        if granted:
            self._lease = granted.group(1)
        told = [plain(text, self._endpoint, self._lease) for text in (out, err)]
        return process.returncode, told[0], told[1]

    def _talk(self, process: subprocess.Popen[str], line: Line) -> tuple[str, str]:
        if not line.until:
            return process.communicate(line.stdin)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(line.stdin)
        process.stdin.flush()
        seen = [process.stdout.readline() for _ in range(line.until)]
        process.send_signal(signal.SIGINT)
        process.wait()
        rest, err = process.communicate()
        return "".join(seen) + rest, err


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("release", ["3.5", "3.4"])
def test_every_line_says_the_same(release: str, tmp_path: Path) -> None:
    program = etcdctls()[release]
    if program is None:
        pytest.skip(f"needs etcdctl {release}; .ci/run shows how it is installed")
    makes: list[Callable[..., clusters.Cluster]] = [clusters.etcd, clusters.ours]
    with makes[0](tmp_path / "etcd", size=1) as theirs, makes[1](tmp_path / "ours", size=1) as ours:
        walkers = [Walker(program, cluster.endpoints[0]) for cluster in (theirs, ours)]
        with ThreadPoolExecutor(2) as pool:
            left, right = pool.map(lambda walker: list(walker.walk()), walkers)
    differences = [
        f"{line.words}\n    etcd {one}\n    ours {other}"
        for line, one, other in zip(LINES, left, right, strict=True)
        if one != other
    ]
    assert not differences, "\n".join(differences)
    assert {0, 1, 128} <= {code for code, _, _ in left}
