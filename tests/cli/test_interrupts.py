"""SIGINT and SIGTERM end a command as they end etcdctl: it dies of them, silently, and leaves nothing."""

import contextlib
import ctypes
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent import futures
from pathlib import Path

import grpc
import pytest

from kvstore import interrupts
from kvstore.wire import rpc_pb2

PATIENCE_S = 60.0

KVSTORE = [sys.executable, "-m", "kvstore"]

WAITING = {
    "get": ["get", "a"],
    "put": ["put", "a", "1"],
    "watch": ["watch", "a"],
    "lock": ["lock", "l"],
    "elect": ["elect", "e", "v"],
    "elect -l": ["elect", "-l", "e"],
    "make-mirror": ["make-mirror", "127.0.0.1:1"],
    "snapshot save": ["snapshot", "save", "backup"],
    "endpoint status": ["endpoint", "status"],
    "endpoint health": ["endpoint", "health"],
    "member list": ["member", "list"],
    "move-leader": ["move-leader", "1"],
    "defrag": ["defrag"],
    "lease keep-alive": ["lease", "keep-alive", "1"],
}
"""What waits, by its name, for a member that never answers."""


@contextlib.contextmanager
def running(*words, cwd=None, ignore=None):
    """The command with pipes; killed at the end if it still runs."""
    process = subprocess.Popen(
        [*KVSTORE, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=cwd,
        env={name: text for name, text in os.environ.items() if not name.startswith("ETCD")},
        preexec_fn=None if ignore is None else lambda: signal.signal(ignore, signal.SIG_IGN),
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def ends(process):
    """The exit code, and both outputs."""
    code = process.wait(PATIENCE_S)
    return code, process.stdout.read(), process.stderr.read()


def until(condition):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def silent():
    """A listener that a command connects to, and that never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def connected(listener):
    """Wait until the command stands in its call."""
    readable, _, _ = select.select([listener], [], [], PATIENCE_S)
    assert readable
    return listener.accept()[0]


def flags(listener):
    return [f"--endpoints=127.0.0.1:{listener.getsockname()[1]}", "--command-timeout=1h"]


@pytest.mark.parametrize("module", ["click", "asyncio", "google.protobuf", "grpc"])
def test_while_the_command_loads(module):
    command = [sys.executable, "-X", "importtime", "-m", "kvstore", "watch", "a"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        for line in process.stderr:
            assert line.startswith(b"import time:")
            if line.split(b"|")[-1].strip().decode() == module:
                break
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(PATIENCE_S) == -signal.SIGINT
    assert [line for line in rest.splitlines() if not line.startswith(b"import time:")] == []


def test_nothing_is_imported_before_the_interrupt_is_in_hand():
    """What an interrupt meets until then is a traceback of Python's own."""
    program = """
import sys
before = set(sys.modules)
import kvstore.__main__, signal
signal.signal = lambda *_: print(*sorted(name for name in sys.modules if name not in before))
kvstore.__main__.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", program, "version"], capture_output=True, text=True, check=True
    )
    loaded = done.stdout.splitlines()[0].split()
    assert {"kvstore", "kvstore.__main__", "signal"} <= set(loaded)
    assert set(loaded) <= {"kvstore", "kvstore.__main__", "signal", "enum", "types", "functools", "operator",
                           "collections", "__future__", "reprlib", "keyword", "itertools", "_operator",
                           "_collections", "_functools"}  # fmt: skip


@pytest.mark.parametrize("number", interrupts.SIGNALS)
@pytest.mark.parametrize("name", WAITING)
def test_while_it_waits_for_a_member(name, number, silent, tmp_path):
    with running(*WAITING[name], *flags(silent), cwd=tmp_path) as process, connected(silent):
        process.send_signal(number)
        assert ends(process) == (-number, b"", b"")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["put", "a"], ["txn"], ["watch", "-i"]])
def test_while_it_waits_for_its_input(words, silent):
    with running(*words, *flags(silent)) as process:
        os.set_blocking(process.stdin.fileno(), False)
        with contextlib.suppress(BlockingIOError):
            while True:  # until the pipe is full: once it is not, the command reads
                os.write(process.stdin.fileno(), b"x" * 65536)
        _, writable, _ = select.select([], [process.stdin], [], PATIENCE_S)
        assert writable
        process.send_signal(signal.SIGINT)
        assert ends(process) == (-signal.SIGINT, b"", b"")


@pytest.mark.parametrize("name", ["watch", "make-mirror", "lock", "snapshot save"])
def test_on_any_thread(name, silent, tmp_path):
    """The kernel may choose one that does not wake the event loop."""
    with running(*WAITING[name], *flags(silent), cwd=tmp_path) as process, connected(silent):
        threads = [int(each) for each in os.listdir(f"/proc/{process.pid}/task")]
        other = next(each for each in threads if each != process.pid)
        assert ctypes.CDLL(None).tgkill(process.pid, other, signal.SIGINT) == 0
        assert ends(process) == (-signal.SIGINT, b"", b"")


@pytest.mark.parametrize("name", ["get", "watch", "lock", "snapshot save"])
def test_what_is_ignored_from_the_start_stays_ignored(name, silent, tmp_path):
    with running(*WAITING[name], *flags(silent), cwd=tmp_path, ignore=signal.SIGINT) as process:
        connection = connected(silent)
        process.send_signal(signal.SIGINT)  # of two that wait, the kernel delivers the lower first
        process.send_signal(signal.SIGTERM)
        assert ends(process)[0] == -signal.SIGTERM
        connection.close()


def test_a_held_lock_is_released_though_interrupts_are_ignored(make_member, ours, tmp_path):
    member = make_member(tmp_path / "data")
    endpoint = f"--endpoints={member.endpoint}"
    with member.run(log=tmp_path / "log"):
        with running("lock", "l", endpoint, ignore=signal.SIGINT) as process:
            assert process.stdout.readline().startswith(b"l/")
            process.send_signal(signal.SIGINT)
            assert ends(process) == (0, b"\n", b"")
        assert ours(["get", "--prefix", "l/", endpoint]).out == b""
        assert ours(["lease", "list", endpoint]).out == b"found 0 leases\n"


@pytest.fixture
def stalled():
    """The address of a member that sends the beginning of a snapshot, and no more."""
    ended = threading.Event()

    def snapshot(_request, _context):
        yield rpc_pb2.SnapshotResponse(blob=b"x" * 512, remaining_bytes=512)
        ended.wait(PATIENCE_S)

    handler = grpc.unary_stream_rpc_method_handler(
        snapshot,
        request_deserializer=rpc_pb2.SnapshotRequest.FromString,
        response_serializer=rpc_pb2.SnapshotResponse.SerializeToString,
    )
    with futures.ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("etcdserverpb.Maintenance", {"Snapshot": handler}),)
        )
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            ended.set()
            server.stop(None).wait()


@pytest.mark.parametrize("number", interrupts.SIGNALS)
def test_half_a_snapshot_is_removed(number, stalled, tmp_path):
    with running("snapshot", "save", "backup", f"--endpoints={stalled}", cwd=tmp_path) as process:
        until(lambda: (tmp_path / "backup.part").exists())
        process.send_signal(number)
        assert ends(process) == (-number, b"", b"")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", interrupts.SIGNALS)
def test_the_tour_stops_its_members(number, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with running("cluster", "demo") as process:
        assert process.stdout.readline().startswith(b"three members are up")
        assert len(members_below(tmp_path)) == 3
        process.send_signal(number)
        code, _, err = ends(process)
        assert (code, err) == (-number, b"")
    assert members_below(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", interrupts.SIGNALS)
def test_a_run_of_the_verifier_stops_its_members(number, tmp_path):
    with running("verify", "run", "--seconds", "300", "--directory", str(tmp_path)) as process:
        until(lambda: len(members_below(tmp_path)) == 3)
        process.send_signal(number)
        code, _, err = ends(process)
        assert (code, err) == (-number, b"")
    assert members_below(tmp_path) == []


def members_below(folder):
    """The processes whose data lie below the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # ended meanwhile
            if f"--data-dir={folder}".encode() in path.read_bytes():
                found.append(path.parent.name)
    return found


def test_clean_up_runs_and_handlers_are_put_back():
    before = [signal.getsignal(number) for number in interrupts.SIGNALS]
    with pytest.raises(KeyboardInterrupt) as caught, interrupts.undoing():
        signal.raise_signal(signal.SIGTERM)
    assert interrupts.number_of(caught.value) == signal.SIGTERM
    assert interrupts.number_of(KeyboardInterrupt()) == signal.SIGINT
    assert [signal.getsignal(number) for number in interrupts.SIGNALS] == before


def test_where_signals_do_not_kill_the_exit_code_names_them():
    """The first process of a container is spared by the kernel."""
    program = """
import signal
from kvstore import interrupts
signal.raise_signal = lambda number: None
interrupts.die_of(signal.SIGTERM)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 128 + signal.SIGTERM


def test_a_suite_that_ignores_interrupts_still_tests_them():
    """A script that starts the suite with `&` or nohup leaves SIGINT ignored, which children inherit."""
    test = f"{__file__}::test_on_any_thread[watch]"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test],
        cwd=Path(__file__).parents[2],
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
        capture_output=True,
        text=True,
        check=False,
        timeout=2 * PATIENCE_S,
    )
    assert "1 passed" in done.stdout, done.stdout
