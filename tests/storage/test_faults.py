"""A sample of `make faults` (see faults/README.md), and the controls that show it can fail."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from raft.storage import LogFailed, records
from raft.storage.wal import Log
from tests.storage.faults import copies, in_memory, injection, power
from tests.storage.faults.injection import Outcome, Plan

SAMPLE = 12
"""Of the faults injected into real processes; all of them take minutes."""

STATES_MAX = 100
"""Crash states visited at one call of `MemoryFiles`."""

BEFORE_THE_MARK = 60
"""Bytes from the end of the log: inside the newest work, which a mark of 19 bytes says was synced."""

needs_strace = pytest.mark.skipif(not injection.strace_works(), reason="strace is not here, or may not trace")


@pytest.fixture(scope="module")
def calls() -> list[power.Call]:
    return power.trace()


def nothing(count: int) -> int:
    return 0


def test_every_call_of_the_file_interface_may_fail() -> None:
    ends, broken = in_memory.campaign(seed=5)
    assert not broken, "\n".join(broken)
    print(dict(ends))
    assert sum(ends.values()) > 300
    for expected in ("EIO: stopped", "EIO: refused", "ENOSPC: went on", "ENOSPC for ever: stopped"):
        assert ends[expected] > 10, ends


def test_every_state_a_power_cut_can_leave() -> None:
    states, bounded, broken = in_memory.power_cut_everywhere(STATES_MAX)
    assert not broken, "\n".join(broken)
    print(f"{states} states; at {bounded} calls only the first {STATES_MAX}")
    assert states > 1000
    assert bounded < 20


@needs_strace
def test_a_sample_of_the_calls_of_a_real_process_fails() -> None:
    plans = injection.plans()
    sample = plans[:: len(plans) // SAMPLE]
    outcomes = [(plan, injection.execute(plan)) for plan in sample]
    broken = [f"{plan}: {outcome.wrong}" for plan, outcome in outcomes if outcome.wrong]
    assert not broken, "\n".join(broken)
    assert len([outcome for _, outcome in outcomes if outcome.end != "went on"]) > SAMPLE // 2
    assert len(plans) > 500


@needs_strace
def test_the_power_may_fail_at_any_call_of_a_real_process(calls: list[power.Call]) -> None:
    states, broken = power.campaign(calls, subsets=1, seed=11, every=5)
    assert not broken, "\n".join(broken)
    print(f"{states} states of {len(calls)} calls")
    assert states > 100


@needs_strace
def test_old_copies_are_refused_or_harmless(calls: list[power.Call]) -> None:
    ends, broken = copies.campaign(calls, every=6)
    assert not broken, "\n".join(broken)
    assert len([end for end in ends if end.endswith("refused")]) == len(copies.PARTS), ends


# ---------------------------------------------------------------------- negative controls


@needs_strace
def test_a_process_that_does_not_sync_is_caught(calls: list[power.Call]) -> None:
    assert power.power_cut_after(calls, len(calls), nothing) == ""
    assert "the log is not" in power.power_cut_after(calls, len(calls), nothing, sync_works=False)


@needs_strace
def test_a_recovery_that_truncates_silently_is_caught(
    calls: list[power.Call], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flipped bit in a record that was acknowledged: refused, or else the truncation shows as a loss."""
    replay = power.Replay()
    for call in calls:
        replay.do(call)
    outcomes = []
    for truncates in (False, True):
        folder = tmp_path / str(truncates)
        folder.mkdir()
        replay.lay_out(folder)
        wal = folder / "member" / "wal"
        begun = [path for path in sorted(wal.iterdir()) if any(path.read_bytes()[records.SECTOR_BYTES :])]
        segment = begun[-1]
        content = bytearray(segment.read_bytes())
        content[len(content.rstrip(b"\0")) - BEFORE_THE_MARK] ^= 1
        segment.write_bytes(content)
        if truncates:
            monkeypatch.setattr(records, "is_torn", lambda *_: True)
        outcomes.append(asyncio.run(injection.judge_disk(folder / "member", Outcome(replay.lines, 0))))
        shutil.rmtree(folder)
    assert outcomes[0].startswith("refused")
    assert outcomes[1].startswith("the log is not as after")


def test_a_log_that_goes_on_after_an_error_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed sync that is taken for a success."""
    real = Log.commit

    def ignores_errors(log: Log) -> None:
        try:
            real(log)
        except LogFailed:
            log._items = [records.MASK_NONE]

    monkeypatch.setattr(Log, "commit", ignores_errors)
    _, broken = in_memory.campaign(seed=5)
    assert broken


def test_words_are_judged() -> None:
    plan = Plan("log", "fdatasync", 3, "EIO")
    hit = ["1 fdatasync(5</member/wal/0000000000000001.wal>) = -1 EIO (INJECTED)"]
    assert injection.judge_words(plan, Outcome(["begun 1", "fatal x"], 7, hit)) == ""
    assert "went on" in injection.judge_words(plan, Outcome(["begun 1", "fatal x", "acked 1"], 7, hit))
    assert "went on" in injection.judge_words(plan, Outcome(["begun 1", "acked 1", "done"], 0, hit))
    assert "exit code" in injection.judge_words(plan, Outcome(["begun 1", "fatal x"], 0, hit))
