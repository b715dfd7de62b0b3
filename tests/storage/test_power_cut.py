"""The power may fail between any two operations, and any part of what was not synced may be lost.

Whatever is found afterwards is the log after some number of whole works: at least those that were
acknowledged, at most those that were begun. The negative control shows that the test can fail.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from raft.core.ready import AppendToken, AppendWork
from raft.core.types import Entry, EntryKind, HardState, SnapshotMeta
from raft.storage import Checkpoint, LogFailed, MemberDirectory, MemoryFiles, RealFiles, StorageError
from raft.storage.log_recovery import read_log
from raft.storage.memory_files import PowerCut, fail_at
from raft.storage.records import SECTOR_BYTES
from raft.storage.wal import NoSpace
from tests.storage.faults.in_memory import Enumeration

SEGMENT_BYTES = 16 * 1024
"""Of the kit's disks."""

Step = Callable[[MemberDirectory], Awaitable[None]]


def script(kit: Any) -> list[tuple[Any, Step]]:
    """A short life of a log as (model afterwards, step): appends, an overwrite, a compaction, a rotation."""
    model = kit.Model()
    steps: list[tuple[Any, Step]] = []

    def add(work: Any) -> None:
        nonlocal model
        model = model.after(work)

        async def step(member: MemberDirectory) -> None:
            member.log.stage_work(work)

        steps.append((model, step))

    add(kit.append(1, model, 1, 40))
    add(kit.append(2, model, 2, 700))
    add(kit.append(3, model, 1, 1200))
    add(kit.append(4, model, 3, 100, term=2, back=2))
    for sequence in range(5, 9):
        add(kit.append(sequence, model, 1, 3500))
    base = SnapshotMeta(model.state.commit, 2, kit.CONF)
    model = model.compacted(base)

    async def compact(member: MemberDirectory) -> None:
        await member.state.commit(Checkpoint(*base), [(b"key", b"value")])
        member.log.stage_compaction(base)

    steps.append((model, compact))
    add(kit.append(10, model, 1, 0))
    return steps


async def run(disk: Any, steps: list[tuple[Any, Step]]) -> tuple[int, int]:
    """Run until the injected fault. Returns how many steps were acknowledged and how many begun."""
    acknowledged = begun = 0
    try:
        member = await disk.open()
        log = member.log
        for _, step in steps:
            begun += 1
            await step(member)
            log.commit()
            acknowledged += 1
            if log.needs_maintenance:
                log.maintain()
    except (PowerCut, StorageError, NoSpace):
        pass
    return acknowledged, begun


def power_cut_at(call: int) -> Callable[[int, str, str], BaseException | None]:
    return lambda number, operation, path: PowerCut(operation) if number >= call else None


async def check_found(kit: Any, disk: Any, steps: list[tuple[Any, Step]], low: int, high: int) -> str:
    """Open after a crash, compare, and continue writing. Returns '' or what is wrong."""
    try:
        member = await disk.open()
    except StorageError as error:
        return f"refused: {error}"
    models = [kit.Model(), *(model for model, _ in steps)]
    found = [i for i in range(low, high + 1) if models[i].matches(member.recovered)]
    if not found:
        return f"found {member.recovered}, wanted one of {low}..{high}"
    # One more work must be there after the next start.
    work = kit.append(99, models[found[0]], 1, 600)
    member.log.stage_work(work)
    member.log.commit()
    was_truncated = member.recovered.tail_truncated
    await kit.close(member)
    member = await disk.open()
    good = (
        models[found[0]].after(work).matches(member.recovered)
        and member.recovered.tail_truncated == was_truncated
    )
    await kit.close(member)
    return "" if good else f"after going on: {member.recovered}"


async def total_calls(kit: Any) -> int:
    disk = kit.in_memory()
    await run(disk, script(kit))
    assert isinstance(disk.files, MemoryFiles)
    return disk.files.calls


@pytest.mark.asyncio
async def test_every_survival_of_every_crash_point_of_a_short_life(kit: Any) -> None:
    """All subsets of unsynced sectors and names, at each operation."""
    steps = script(kit)
    states = 0
    for call in range(1, await total_calls(kit) + 1):
        enumeration = Enumeration()
        more = True
        while more and states < 20_000:
            disk = kit.in_memory()
            disk.files.fault = power_cut_at(call)
            low, high = await run(disk, steps)
            disk.files.crash(enumeration.choose)
            wrong = await check_found(kit, disk, steps, low, high)
            assert wrong == "", f"crash at call {call}: {wrong}"
            states += 1
            more = enumeration.advance()
    print(f"{states} crash states")
    assert 500 < states < 20_000


@pytest.mark.asyncio
async def test_a_sync_that_does_nothing_loses_acknowledged_work(kit: Any) -> None:
    """The negative control: the same crashes must be caught when sync is a no-op."""
    steps = script(kit)
    rng = kit.seeded(5)
    caught = 0
    for _ in range(50):
        disk = kit.in_memory(sync_works=False)
        low, high = await run(disk, steps)
        assert low == len(steps)
        disk.files.crash(rng.randrange)
        caught += await check_found(kit, disk, steps, low, high) != ""
    assert caught >= 49


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
@pytest.mark.asyncio
async def test_an_error_at_any_call_loses_nothing_acknowledged(kit: Any, code: int) -> None:
    """The log stops at the first error (out of space, when its segment is full); a restart finds the rest."""
    steps = script(kit)
    rng = kit.seeded(code)
    stopped = 0
    for call in range(1, await total_calls(kit) + 1):
        disk = kit.in_memory()
        disk.files.fault = fail_at(call, code)
        low, high = await run(disk, steps)
        stopped += low < len(steps)
        disk.files.crash(rng.randrange)
        wrong = await check_found(kit, disk, steps, low, high)
        assert wrong == "", f"errno {code} at call {call}: {wrong}"
    assert stopped > 20


class Mutant:
    """The real disk with a fault at one call: a proxy for the file system and its files."""

    CALLS = frozenset(
        {"open", "make_directory", "rename", "unlink", "sync_directory", "pwrite", "allocate", "sync"}
    )

    def __init__(self, target: Any, fault: Callable[[str], None]) -> None:
        self._target = target
        self._fault = fault

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._target, name)

        def call(*arguments: Any, **options: Any) -> Any:
            if name in self.CALLS:
                self._fault(name)
            result = method(*arguments, **options)
            return Mutant(result, self._fault) if name == "open" else result

        return call


@pytest.mark.parametrize(
    "error", [PowerCut("kill"), OSError(errno.EIO, "eio"), OSError(errno.ENOSPC, "full")]
)
@pytest.mark.asyncio
async def test_a_real_disk_survives_a_kill_or_an_error_at_any_call(
    kit: Any, tmp_path: Any, error: Exception
) -> None:
    """What was written stays, as after `kill -9`; the error occurs once or for ever after."""
    steps = script(kit)
    call = 1
    while True:
        disk = kit.Disk(RealFiles(), str(tmp_path / str(call)))
        seen = 0

        def fault(operation: str) -> None:
            nonlocal seen
            seen += 1
            if seen >= call:  # noqa: B023  # called only in this iteration
                raise error

        disk.files = Mutant(RealFiles(), fault)
        low, high = await run(disk, steps)
        for member in disk.opened:
            await kit.close(member)
        disk.files = RealFiles()
        wrong = await check_found(kit, disk, steps, low, high)
        assert wrong == "", f"{error} at call {call}: {wrong}"
        if seen < call:
            break
        call += 5 if call > 12 else 1
    assert call > 40


@pytest.mark.asyncio
async def test_after_a_failed_sync_nothing_is_accepted(kit: Any) -> None:
    disk = kit.in_memory()
    member = await disk.open()
    model = kit.Model()
    member.log.stage_work(kit.append(1, model, 1, 10))
    calls = disk.files.calls
    disk.files.fault = lambda number, operation, path: (
        OSError(errno.EIO, "i/o error") if number == calls + 2 else None  # the sync; later ones would succeed
    )
    with pytest.raises(LogFailed, match="outcome is unknown"):
        member.log.commit()
    with pytest.raises(LogFailed):
        member.log.commit()
    with pytest.raises(LogFailed):
        member.log.maintain()


@pytest.mark.asyncio
async def test_a_full_disk_is_met_ahead_of_need(kit: Any) -> None:
    """No space for the next segment: maintenance raises NoSpace, the current segment still takes work, and
    freed space ends it."""
    disk = kit.in_memory()
    member = await disk.open()
    full = True

    def fault(number: int, operation: str, path: str) -> BaseException | None:
        return OSError(errno.ENOSPC, "no space") if full and operation == "allocate" else None

    disk.files.fault = fault
    model = kit.Model()
    with pytest.raises(NoSpace):
        member.log.maintain()
    for sequence in range(1, 9):
        work = kit.append(sequence, model, 1, 1000)
        model = model.after(work)
        member.log.stage_work(work)
        member.log.commit()
    assert disk.files.list("/member/wal") == ["0000000000000001.wal"]  # nothing half-made is left
    full = False
    member.log.maintain()
    assert len(disk.segments()) == 2
    for sequence in range(9, 30):
        work = kit.append(sequence, model, 1, 1000)
        model = model.after(work)
        member.log.stage_work(work)
        member.log.commit()
    await kit.close(member)
    member = await disk.open()
    assert model.matches(member.recovered)


@pytest.mark.parametrize("size", [5, 400, 512, 1500, 2600])
@pytest.mark.asyncio
async def test_a_tail_torn_at_any_byte(kit: Any, disk: Any, size: int) -> None:
    """The last frame, kept up to any byte: gone, or refused, but never anything else.

    Gone without trace if nothing of it is left; truncated if one of its sectors is still all zero
    (a sector is written whole or not at all); otherwise it had once been complete: damage.
    """
    member = await disk.open()
    first = kit.append(1, kit.Model(), 1, 300)
    before = kit.Model().after(first)
    member.log.stage_work(first)
    member.log.commit()
    (segment,) = disk.segments()
    start = len(disk.read(segment).rstrip(b"\0"))
    member.log.stage_work(kit.append(2, before, 1, size))
    member.log.commit()
    await kit.close(member)
    whole = disk.read(segment)
    end = len(whole.rstrip(b"\0"))
    start = next(at for at in range(start, end) if at % 16 == 0 and at >= start)
    positions = set(range(start, end + 1))
    if not isinstance(disk.files, MemoryFiles):  # dear there, so only where something changes
        borders = {at for at in positions if at % SECTOR_BYTES == 0}
        positions = {start, start + 1, start + 20, end - 9, end - 1, end} | borders
    seen = set()
    for kept in sorted(positions):
        torn = whole[:kept].ljust(len(whole), b"\0")
        disk.edit(segment, lambda data, torn=torn: data.__setitem__(slice(None), torn))
        last_sector = (end - 1) // SECTOR_BYTES * SECTOR_BYTES
        nothing_of_last = not any(torn[max(start, last_sector) : end])
        if any(torn[start:end]) and torn[start : start + 12] != whole[start : start + 12]:
            nothing_of_last = (
                False  # a header in pieces: no sector-wise write does that, and its length is lost
            )
        try:
            member = await disk.open()
        except StorageError:
            assert not nothing_of_last
            assert kept < end
            seen.add("damage")
            continue
        if kept == end:
            assert member.recovered.entries[-1].data == bytes([3]) * size
            seen.add("whole")
        else:
            assert nothing_of_last
            assert before.matches(member.recovered)
            assert member.recovered.tail_truncated == any(torn[start:end])
            seen.add("truncated" if member.recovered.tail_truncated else "gone")
        await kit.close(member)
        for extra in disk.segments()[1:]:
            disk.files.unlink(extra)
    assert {"gone", "damage", "whole"} <= seen
    assert ("truncated" in seen) == (size > 512 - (start + 16) % 512)


@pytest.mark.asyncio
async def test_every_sector_subset_of_a_torn_tail(kit: Any, disk: Any) -> None:
    """Sectors reach the disk in any order: each proper subset of the last frame's is recognised as torn."""
    member = await disk.open()
    first = kit.append(1, kit.Model(), 1, 300)
    before = kit.Model().after(first)
    member.log.stage_work(first)
    member.log.commit()
    (segment,) = disk.segments()
    old = disk.read(segment)
    member.log.stage_work(kit.append(2, before, 4, 500))
    member.log.commit()
    await kit.close(member)
    new = disk.read(segment)
    sectors = [at for at in range(0, len(new), SECTOR_BYTES) if new[at : at + 512] != old[at : at + 512]]
    assert len(sectors) == 5
    for subset in range(1 << len(sectors)):
        torn = bytearray(old)
        for bit, at in enumerate(sectors):
            if subset >> bit & 1:
                torn[at : at + 512] = new[at : at + 512]
        disk.edit(segment, lambda data, torn=torn: data.__setitem__(slice(None), torn))
        member = await disk.open()
        complete = subset == (1 << len(sectors)) - 1
        assert len(member.recovered.entries) == (5 if complete else 1)
        assert member.recovered.tail_truncated == (subset != 0 and not complete)
        await kit.close(member)
        for extra in disk.segments()[1:]:
            disk.files.unlink(extra)


@pytest.mark.asyncio
async def test_values_full_of_zeros_do_not_look_torn(kit: Any, disk: Any) -> None:
    """A flipped bit in a frame that carries kilobytes of zeros is damage, not a torn write."""
    member = await disk.open()
    work = kit.append(254, kit.Model(), 1, 0)
    work.entries = [work.entries[0]._replace(data=bytes(3000))]
    member.log.stage_work(work)
    member.log.commit()
    await kit.close(member)
    member = await disk.open()
    assert member.recovered.entries[0].data == bytes(3000)
    await kit.close(member)
    (segment,) = disk.segments()
    end = len(disk.read(segment).rstrip(b"\0"))
    disk.edit(segment, lambda data: data.__setitem__(end - 700, data[end - 700] ^ 4))
    with pytest.raises(StorageError, match="damaged"):
        await disk.open()


@pytest.mark.asyncio
async def test_a_truncation_stays_recorded_until_confirmed(kit: Any, disk: Any) -> None:
    """Through restarts and rotations, until the member says that a leader has confirmed its log."""
    member = await disk.open()
    work = kit.append(1, kit.Model(), 1, 2000)
    member.log.stage_work(work)
    member.log.commit()
    await kit.close(member)
    (segment,) = disk.segments()
    last_sector = (len(disk.read(segment).rstrip(b"\0")) - 1) // SECTOR_BYTES * SECTOR_BYTES
    lost = slice(last_sector - SECTOR_BYTES, last_sector)
    disk.edit(segment, lambda data: data.__setitem__(lost, bytes(SECTOR_BYTES)))
    model = kit.Model()
    for round_ in range(3):
        member = await disk.open()
        assert member.recovered.tail_truncated
        assert model.matches(member.recovered)
        for sequence in range(12):
            work = kit.append(round_ * 12 + sequence, model, 1, 1500)
            model = model.after(work)
            member.log.stage_work(work)
            member.log.commit()
        await kit.close(member)
    member = await disk.open()
    member.log.stage_vote_eligible()
    member.log.commit()
    await kit.close(member)
    member = await disk.open()
    assert not member.recovered.tail_truncated
    assert member.recovered.vote_eligible
    assert model.matches(member.recovered)
    await kit.close(member)


@pytest.mark.asyncio
async def test_a_snapshot_replaces_the_log_or_does_not(kit: Any) -> None:
    """At every crash the log is the old one or begins at the snapshot; never a mixture, rotation included."""
    rng = kit.seeded(23)
    found_models = set()
    for fill in (False, True):  # a full segment makes the snapshot's frame the first of the next one
        for call in range(1, 12):
            for _ in range(10):
                disk = kit.in_memory()
                log = (await disk.open()).log
                model = kit.Model()
                while model.last_index < 3 or (fill and log._offset + 1000 <= SEGMENT_BYTES):
                    work = kit.append(model.last_index, model, 3, 100)
                    model = model.after(work)
                    log.stage_work(work)
                    log.commit()
                snapshot = SnapshotMeta(
                    model.last_index - 1, 7, kit.CONF
                )  # within the log, of another history
                install = AppendWork(
                    token=AppendToken(7, 9, snapshot.index, 7),
                    snapshot=snapshot,
                    entries=[Entry(7, snapshot.index + 1, EntryKind.NORMAL, b"x" * 900)],
                    hard_state=HardState(7, 0, snapshot.index),
                    must_sync=True,
                )
                log.maintain()
                disk.files.fault = power_cut_at(disk.files.calls + call)
                acknowledged = False
                try:
                    log.stage_work(install)
                    log.commit()
                    acknowledged = True
                    log.maintain()
                except PowerCut:
                    pass
                disk.files.crash(rng.randrange)
                contents = read_log(disk.files, f"{disk.path}/wal")
                assert contents is not None
                matching = [m for m in (model, model.after(install)) if m.matches(contents)]
                assert len(matching) == 1, f"seed 23, call {call}: {contents}"
                assert matching[0] is not model or not acknowledged
                found_models.add((fill, matching[0] is model))
    assert len(found_models) == 4


@pytest.mark.asyncio
async def test_a_work_larger_than_a_frame_arrives_in_parts(kit: Any) -> None:
    """Entries come before their hard state, so a part of them raises the term and forgets the vote."""
    rng = kit.seeded(17)
    before = kit.Model().after(kit.append(1, kit.Model(), 1, 10))
    first = kit.append(1, kit.Model(), 1, 10)
    large = kit.append(2, before, 6, 1500, term=5)
    lengths = set()
    for call in range(1, 30):
        for _ in range(10):
            disk = kit.in_memory()
            member = await disk.open()
            member.log.stage_work(first)
            member.log.commit()
            base = disk.files.calls
            disk.files.fault = power_cut_at(base + call)
            acknowledged = False
            try:
                member.log.stage_work(large)
                member.log.commit()
                acknowledged = True
            except PowerCut:
                pass
            disk.files.crash(rng.randrange)
            member = await disk.open()
            entries = member.recovered.entries
            assert list(entries) == [*first.entries, *large.entries][: len(entries)]
            assert len(entries) >= (7 if acknowledged else 1)
            state = member.recovered.hard_state
            assert state.term == entries[-1].term
            assert state.vote == (0 if 1 < len(entries) < 7 else 1)
            lengths.add(len(entries))
            await kit.close(member)
    assert {1, 7} < lengths


def test_the_in_memory_implementation_and_the_real_files_agree_on_names(tmp_path: Any) -> None:
    """The same calls, the same answers and the same kinds of error."""

    def life(files: Any, root: str) -> list[object]:
        seen: list[object] = []
        files.make_directory(root)
        files.make_directory(f"{root}/d")
        file = files.open(f"{root}/d/a", create=True)
        file.pwrite(b"bytes", 3)
        file.allocate(20)
        seen.append((file.size(), file.pread(100, 0), file.pread(2, 3), file.pread(5, 50)))
        file.allocate(10)
        file.datasync()
        file.sync()
        seen.append(file.size())
        files.rename(f"{root}/d/a", f"{root}/d/b")
        file.pwrite(b"!", 0)
        seen.append((files.list(f"{root}/d"), files.list(root), files.exists(f"{root}/d/a")))
        seen.append(files.open(f"{root}/d/b").pread(1, 0))
        for bad in (
            lambda: files.open(f"{root}/d/a"),
            lambda: files.open(f"{root}/d/b", create=True),
            lambda: files.unlink(f"{root}/d/a"),
            lambda: files.list(f"{root}/none"),
        ):
            with pytest.raises(OSError) as error:  # noqa: PT011  # the kind is compared between the two
                bad()
            seen.append(type(error.value))
        files.unlink(f"{root}/d/b")
        files.sync_directory(f"{root}/d")
        seen.append(files.list(f"{root}/d"))
        return seen

    assert life(RealFiles(), str(tmp_path / "x")) == life(MemoryFiles(), "/x")
