"""How a server ends: cleanly at the first signal, at once at the second."""

import signal
import time

import pytest

STOP_MAX_S = 3.0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_stops_cleanly_and_soon(number, make_member, ours, tmp_path):
    member = make_member(tmp_path / "data")
    with member.run("--log-format=console", log=tmp_path / "log"):
        assert ours(["put", "a", "1", f"--endpoints={member.endpoint}"]).code == 0
        begun = time.monotonic()
        member.process.send_signal(number)
        assert member.process.wait(10) == 0
        assert time.monotonic() - begun < STOP_MAX_S
    log = (tmp_path / "log").read_text()
    assert "received signal; shutting down" in log
    assert f"signal={number.name}" in log
    assert "Traceback" not in log
    with member.run(log=tmp_path / "log2"):
        assert ours(["get", "a", f"--endpoints={member.endpoint}"]).out == b"a\n1\n"


def test_the_second_signal_ends_it_at_once(make_member, tmp_path):
    member = make_member(tmp_path / "data")
    with member.run(log=tmp_path / "log"):
        # stopped, it takes both signals in one go: the first is not yet handled when the second comes
        member.process.send_signal(signal.SIGSTOP)
        member.process.send_signal(signal.SIGTERM)
        member.process.send_signal(signal.SIGINT)
        begun = time.monotonic()
        member.process.send_signal(signal.SIGCONT)
        code = member.process.wait(10)
        assert time.monotonic() - begun < 1
        assert code in {-signal.SIGINT, -signal.SIGTERM}
