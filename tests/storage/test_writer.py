"""The writers of the log: order, group commit, the inline rule, and the reaction to a failing disk."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from raft.core.ready import AppendToken, AppendWork
from raft.core.types import HardState
from raft.storage import InlineLogWriter, MemberDirectory, ThreadedLogWriter
from raft.storage import writer as writer_module

DEADLINE_S = 10.0


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition; the test fails if it does not come true."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110  # what threads do raises no event
            await asyncio.sleep(0.001)


@dataclass
class Bench:
    """A threaded writer on `MemoryFiles`, whose syncs can be delayed and failed."""

    kit: Any
    disk: Any
    member: MemberDirectory
    gate: threading.Event = field(default_factory=threading.Event)
    """Syncs wait for it; set unless a test clears it."""
    waiting: threading.Event = field(default_factory=threading.Event)
    """A sync has arrived at the gate."""
    failing: dict[str, int] = field(default_factory=dict)
    """Errno by operation."""
    fatal: list[str] = field(default_factory=list)
    space: list[bool] = field(default_factory=list)
    done: list[int] = field(default_factory=list)
    model: Any = None
    sequence: int = 0
    writer: Any = None

    def fault(self, number: int, operation: str, path: str) -> BaseException | None:
        if operation == "datasync":
            self.waiting.set()
            assert self.gate.wait(DEADLINE_S)
        code = self.failing.get(operation)
        return OSError(code, "injected") if code else None

    def submit(self, count: int = 1, size: int = 50) -> None:
        self.sequence += 1
        work = self.kit.append(self.sequence, self.model, count, size)
        self.model = self.model.after(work)
        self.writer.submit(work, self.on_done)

    def on_done(self, work: AppendWork) -> None:
        assert threading.current_thread() is threading.main_thread()
        self.done.append(work.token.sequence)

    async def reopen(self) -> MemberDirectory:
        await self.writer.close()
        await self.member.state.close()
        self.member.release()
        member: MemberDirectory = await self.disk.open()
        return member


async def bench(kit: Any, *, kind: Any = ThreadedLogWriter, **options: Any) -> Bench:
    disk = kit.in_memory()
    made = Bench(kit, disk, await disk.open())
    made.model = kit.Model()
    made.gate.set()
    disk.files.fault = made.fault
    made.writer = kind(
        made.member.log,
        loop=asyncio.get_running_loop(),
        fatal=made.fatal.append,
        on_space=made.space.append,
        **options,
    )
    return made


@pytest.mark.asyncio
async def test_all_that_queues_during_one_sync_shares_the_next(kit: Any) -> None:
    b = await bench(kit, inline=False)
    await until(lambda: not b.member.log.needs_maintenance)
    b.gate.clear()
    b.submit()
    assert b.waiting.wait(DEADLINE_S)
    for _ in range(30):
        b.submit()
    assert b.done == []
    b.gate.set()
    await until(lambda: len(b.done) == 31)
    assert b.done == list(range(1, 32))
    assert b.writer.statistics().syncs == 2
    assert b.writer.statistics().appends == 31
    member = await b.reopen()
    assert b.model.matches(member.recovered)


@pytest.mark.parametrize("kind", [ThreadedLogWriter, InlineLogWriter])
@pytest.mark.asyncio
async def test_done_never_comes_from_inside_submit(kit: Any, kind: Any) -> None:
    b = await bench(kit, kind=kind)
    lazy = AppendWork(token=AppendToken(1, 0, 0, 0))
    b.writer.submit(lazy, b.on_done)
    b.submit()
    assert b.done == []
    await until(lambda: b.done == [0, 1])
    await b.writer.close()


@pytest.mark.asyncio
async def test_inline_needs_a_willing_policy_and_an_idle_writer(kit: Any) -> None:
    b = await bench(kit)
    asked = []

    class Willing:
        def allows(self, now: float, operations: int) -> bool:
            asked.append(operations)
            return operations <= 4

        def observe(self, now: float, duration_s: float) -> None:
            pass

    b.writer._policy = Willing()
    await until(lambda: not b.member.log.needs_maintenance and not b.writer._lock.locked())
    b.submit(2)
    assert b.writer.statistics().syncs_inline == 1
    assert b.done == []
    b.submit(5)  # too many: to the thread
    b.submit(1)  # behind it, so to the thread as well, whatever the policy says
    assert b.writer.statistics().syncs_inline == 1
    assert asked == [2, 5]
    await until(lambda: b.done == [1, 2, 3])
    await until(lambda: not b.writer._lock.locked())
    b.submit(1)
    assert b.writer.statistics().syncs_inline == 2
    member = await b.reopen()
    assert b.model.matches(member.recovered)


@pytest.mark.asyncio
async def test_a_moved_commit_index_costs_no_sync(kit: Any) -> None:
    b = await bench(kit, inline=False)
    b.submit(3)
    await until(lambda: b.done == [1])
    syncs = b.writer.statistics().syncs
    commit = AppendWork(token=AppendToken(1, 2, 3, 1), hard_state=HardState(1, 1, 3))
    b.writer.submit(commit, b.on_done)
    await until(lambda: b.done == [1, 2])
    assert b.writer.statistics().syncs == syncs
    member = await b.reopen()
    assert member.recovered.hard_state == HardState(1, 1, 3)


@pytest.mark.asyncio
async def test_a_moved_commit_index_never_passes_a_newer_term(kit: Any) -> None:
    """It is written before what was submitted after it, or not at all."""
    b = await bench(kit, inline=False)
    b.gate.clear()
    b.submit(3)
    assert b.waiting.wait(DEADLINE_S)
    b.writer.submit(AppendWork(token=AppendToken(1, 2, 3, 1), hard_state=HardState(1, 1, 2)), b.on_done)
    vote = AppendWork(token=AppendToken(2, 3, 3, 1), hard_state=HardState(2, 3, 2), must_sync=True)
    b.writer.submit(vote, b.on_done)
    b.gate.set()
    await until(lambda: b.done == [1, 2, 3])
    member = await b.reopen()
    assert member.recovered.hard_state == HardState(2, 3, 2)


@pytest.mark.parametrize("kind", [ThreadedLogWriter, InlineLogWriter])
@pytest.mark.asyncio
async def test_after_an_error_nothing_completes(kit: Any, kind: Any) -> None:
    b = await bench(kit, kind=kind)
    b.submit()
    await until(lambda: b.done == [1])
    b.failing["datasync"] = errno.EIO
    b.submit()
    b.submit()
    await until(lambda: len(b.fatal) == 1)
    b.failing.clear()
    b.submit()
    b.writer.record_peer_disk(2, 3, lambda: b.done.append(-1))
    await b.writer.close()
    assert b.done == [1]
    assert len(b.fatal) == 1
    assert "outcome is unknown" in b.fatal[0]


@pytest.mark.asyncio
async def test_an_inline_error_is_fatal_too(kit: Any) -> None:
    b = await bench(kit)
    for _ in range(32):
        b.writer._policy.observe(0.0, 0.0001)
    await until(lambda: not b.member.log.needs_maintenance and not b.writer._lock.locked())
    b.failing["datasync"] = errno.EIO
    b.submit()
    b.submit()
    assert b.fatal == []  # not from inside submit either
    await until(lambda: len(b.fatal) == 1)
    await b.writer.close()
    assert b.done == []


@pytest.mark.parametrize("kind", [ThreadedLogWriter, InlineLogWriter])
@pytest.mark.asyncio
async def test_a_completion_that_fails_is_fatal(kit: Any, kind: Any) -> None:
    b = await bench(kit, kind=kind)
    loop = asyncio.get_running_loop()
    unhandled: list[object] = []
    loop.set_exception_handler(lambda _, context: unhandled.append(context["exception"]))

    def broken(work: AppendWork) -> None:
        raise ValueError("bug")

    work = kit.append(1, b.model, 1, 10)
    b.writer.submit(work, broken)
    await until(lambda: len(b.fatal) == 1)
    assert "bug" in b.fatal[0]
    assert isinstance(unhandled[0], ValueError)
    await b.writer.close()


@pytest.mark.parametrize("kind", [ThreadedLogWriter, InlineLogWriter])
@pytest.mark.asyncio
async def test_no_space_for_the_next_segment_is_reported_and_recovers(
    kit: Any, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "SPACE_RETRY_S", 0.05)
    monkeypatch.setattr(writer_module, "SYNCED_THROUGH_AFTER_S", 0.01)
    disk = kit.in_memory()
    await kit.close(await disk.open())
    b = await bench(kit, kind=kind)
    await until(lambda: not b.member.log.needs_maintenance)
    b.failing["allocate"] = errno.ENOSPC
    while b.space == []:
        b.submit(1, 3000)
        await until(lambda: len(b.done) == b.sequence)
        await asyncio.sleep(0)
    b.submit(1, 3000)  # the current segment still takes work
    await until(lambda: len(b.done) == b.sequence)
    await until(lambda: len(b.space) > 2)  # reported again while it lasts
    b.failing.clear()
    await until(lambda: b.space[-1])
    assert not any(b.space[:-1])
    member = await b.reopen()
    assert b.model.matches(member.recovered)
    assert b.fatal == []


@pytest.mark.parametrize("kind", [ThreadedLogWriter, InlineLogWriter])
@pytest.mark.asyncio
async def test_a_full_disk_with_the_reserve_used_up_is_fatal(kit: Any, kind: Any) -> None:
    b = await bench(kit, kind=kind)
    await until(lambda: not b.member.log.needs_maintenance)
    b.failing["allocate"] = errno.ENOSPC
    for _ in range(20):
        b.submit(1, 3000)
    await until(lambda: len(b.fatal) == 1)
    assert "disk full" in b.fatal[0]
    assert b.space == [False]
    assert 4 <= len(b.done) < 20
    await b.writer.close()


@pytest.mark.parametrize("kind", [ThreadedLogWriter, InlineLogWriter])
@pytest.mark.asyncio
async def test_idleness_is_used_once_to_mark_the_newest_work(
    kit: Any, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "SYNCED_THROUGH_AFTER_S", 0.02)
    b = await bench(kit, kind=kind)
    b.submit(1, 3000)
    await until(lambda: b.writer.statistics().syncs == 2)
    marked = b.disk.read(b.disk.segments()[0])
    await asyncio.sleep(0.1)  # five idle periods: nothing more may be written
    assert b.writer.statistics().syncs == 2
    assert b.disk.read(b.disk.segments()[0]) == marked
    await b.writer.close()
    assert b.writer.statistics().syncs == 2


@pytest.mark.asyncio
async def test_the_age_of_a_hanging_sync_can_be_read(kit: Any) -> None:
    b = await bench(kit, inline=False)
    await until(lambda: not b.member.log.needs_maintenance)
    b.waiting.clear()
    b.gate.clear()
    b.submit()
    assert b.waiting.wait(DEADLINE_S)
    await until(lambda: b.writer.stalled_seconds() > 0.02)
    b.gate.set()
    await until(lambda: b.writer.stalled_seconds() == 0.0)
    await b.writer.close()


@pytest.mark.parametrize("kind", [ThreadedLogWriter, InlineLogWriter])
@pytest.mark.asyncio
async def test_close_finishes_what_was_submitted(kit: Any, kind: Any) -> None:
    b = await bench(kit, kind=kind)
    for _ in range(20):
        b.submit()
    noted: list[int] = []
    b.writer.record_peer_disk(2, 77, lambda: noted.append(77))
    await b.writer.close()
    await b.writer.close()
    assert b.done == list(range(1, 21))
    assert noted == [77]
    member = await b.reopen()
    assert b.model.matches(member.recovered)
    assert dict(member.recovered.peer_disks) == {2: 77}


@pytest.mark.asyncio
async def test_closing_ends_though_the_log_cannot_be_closed(
    kit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    b = await bench(kit)
    close = b.member.log.close

    def fails() -> None:
        close()
        raise OSError(errno.EIO, "injected")

    monkeypatch.setattr(b.member.log, "close", fails)
    async with asyncio.timeout(DEADLINE_S):
        await b.writer.close()
    await until(lambda: len(b.fatal) == 1)
    assert "cannot be closed" in b.fatal[0]
