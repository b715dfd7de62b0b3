"""make-mirror without a cluster: how changes are split into transactions, refusals, output."""

import asyncio
import sys

import pytest

from kvstore.cli import make_mirror_command
from kvstore.wire import kv_pb2, rpc_pb2


def put(size=0):
    return rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=b"k", value=b"v" * size))


def test_transactions_are_split_by_count_and_by_size():
    parts = make_mirror_command._parts([put()] * 7, 3)
    assert [len(part) for part in parts] == [3, 3, 1]
    large = make_mirror_command.TXN_BYTES * 2 // 5
    parts = make_mirror_command._parts([put(large)] * 5, 128)
    assert [len(part) for part in parts] == [2, 2, 1]
    assert [
        len(part) for part in make_mirror_command._parts([put(make_mirror_command.TXN_BYTES)] * 2, 128)
    ] == [1, 1]
    assert list(make_mirror_command._parts([], 3)) == []


def test_revisions_are_kept_apart():
    events = [kv_pb2.Event(kv=kv_pb2.KeyValue(mod_revision=revision)) for revision in (3, 3, 4, 6, 6)]
    assert [len(part) for part in make_mirror_command._by_revision(events)] == [2, 1, 2]


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("make-mirror", 128, b"make-mirror takes one destination argument"),
        ("make-mirror a --dest-prefix x --no-dest-prefix", 128, b"cannot be set at the same time"),
        ("make-mirror a:1 --dest-user root", 4, b"--dest-user is not supported"),
        ("make-mirror a:1 --max-txn-ops 0", 128, b"--max-txn-ops must be at least 1"),
        ("make-mirror 127.0.0.1:1 --endpoints=127.0.0.1:1 --command-timeout=200ms", 1, b"deadline exceeded"),
    ],
)
def test_refusals(ours, line, code, said):
    found = ours(line.split())
    assert found.code == code
    assert said in found.err


@pytest.mark.asyncio
@pytest.mark.parametrize("terminal", [True, False])
async def test_progress(monkeypatch, capsys, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr(make_mirror_command, "PROGRESS_SECONDS", 0.001)
    monkeypatch.setattr(make_mirror_command, "REPORT_SECONDS", 0.001)
    progress = make_mirror_command._Progress()
    progress.copied = 12345
    telling = asyncio.ensure_future(progress.run())
    out = err = ""
    async with asyncio.timeout(5):
        while not (out or err):
            await asyncio.sleep(0.002)
            out, err = capsys.readouterr()
    telling.cancel()
    if terminal:
        assert err.startswith("\r12,345 changes copied, ")
        assert out == ""
    else:
        assert out.startswith("12345\n")
        assert err == ""
