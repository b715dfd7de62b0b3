"""Read rounds: who shares one, what a lost one means, and that no read is forgotten."""

from __future__ import annotations

from raft.node.node_config import READ_OVERLAP_MIN
from raft.node.node_errors import NodeError, ReadTimedOut, Stopped
from raft.node.reads import Reads

INCARNATION = 0xABCDEF


class Reader:
    def __init__(self, reads: Reads) -> None:
        self.reads = reads
        self.told: dict[str, object] = {}

    def read(self, name: str, deadline_s: float = 7.0) -> None:
        def on_result(error: NodeError | None) -> None:
            assert name not in self.told, "completed twice"
            self.told[name] = "ok" if error is None else type(error)

        assert self.reads.offer(on_result, deadline_s)


def make() -> tuple[Reads, Reader]:
    reads = Reads(INCARNATION, gather_s=0.01, linger_s=0.001)
    return reads, Reader(reads)


def test_reads_that_wait_share_a_round_and_later_ones_wait_for_the_next() -> None:
    reads, reader = make()
    reader.read("a")
    reader.read("b")
    assert reads.begin_wait_s(0.0) == 0.0
    first = reads.begin(0.0)
    reader.read("c")
    assert reads.begin_wait_s(0.001) is not None
    assert reads.begin_wait_s(0.001) != 0.0
    reads.confirmed(first, 5, applied=5, now_s=0.0)
    assert reader.told == {"a": "ok", "b": "ok"}, "c arrived after the round began"
    assert 0.0 < (reads.begin_wait_s(0.0005) or 0.0) <= 0.001, "a and b may come back at once"
    assert reads.begin_wait_s(0.001) == 0.0
    second = reads.begin(0.001)
    assert second != first
    reads.confirmed(second, 6, applied=5, now_s=0.0)
    assert "c" not in reader.told
    reads.applied(6)
    assert reader.told["c"] == "ok"


def test_a_slow_round_does_not_block_the_next_for_long() -> None:
    reads, reader = make()
    reader.read("a")
    reads.begin(0.0)
    reader.read("b")
    assert reads.begin_wait_s(0.01) == 0.0


def test_many_reads_do_not_wait_for_as_many_in_flight() -> None:
    reads, reader = make()
    for number in range(READ_OVERLAP_MIN):
        reader.read(f"first {number}")
    first = reads.begin(0.0)
    for number in range(READ_OVERLAP_MIN - 1):
        reader.read(f"second {number}")
    assert reads.begin_wait_s(0.001) != 0.0, "fewer wait than are in flight"
    reader.read("last")
    assert reads.begin_wait_s(0.001) == 0.0
    second = reads.begin(0.001)
    reads.confirmed(first, 5, applied=5, now_s=0.002)
    assert len(reader.told) == READ_OVERLAP_MIN, "those of the second round arrived after the first began"
    reads.confirmed(second, 5, applied=5, now_s=0.002)
    assert len(reader.told) == 2 * READ_OVERLAP_MIN


def test_a_silent_round_is_begun_anew_and_its_late_answer_ignored() -> None:
    reads, reader = make()
    reader.read("a")
    lost = reads.begin(0.0)
    reads.sweep(0.4)
    assert reads.begin_wait_s(0.4) is None
    reads.sweep(0.5)
    again = reads.begin(0.5)
    assert again != lost
    reads.confirmed(lost, 1, applied=9, now_s=0.0)
    assert reader.told == {}
    reads.confirmed(again, 1, applied=9, now_s=0.0)
    assert reader.told == {"a": "ok"}


def test_dropped_reads_are_held_back_until_another_leader_is_known() -> None:
    reads, reader = make()
    reader.read("a")
    reads.dropped([reads.begin(0.0)], 0.0)
    assert reads.begin_wait_s(0.1) != 0.0
    reads.restart()
    assert reads.begin_wait_s(0.1) == 0.0


def test_time_is_up_wherever_a_read_waits() -> None:
    reads, reader = make()
    reader.read("applying", deadline_s=1.0)
    reads.confirmed(reads.begin(0.0), 10, applied=3, now_s=0.0)
    reader.read("round", deadline_s=1.1)
    reads.begin(0.9)
    reader.read("waiting", deadline_s=1.2)
    reads.sweep(1.2)
    assert reader.told == dict.fromkeys(("applying", "round", "waiting"), ReadTimedOut)


def test_a_confirmed_read_waits_for_its_index_and_no_other() -> None:
    reads, reader = make()
    for name, index in (("low", 5), ("high", 7)):
        reader.read(name)
        reads.confirmed(reads.begin(0.0), index, applied=3, now_s=0.0)
    for applied, told in ((4, []), (5, ["low"]), (6, ["low"]), (7, ["low", "high"]), (8, ["low", "high"])):
        reads.applied(applied)
        assert list(reader.told) == told


def test_reads_of_lost_rounds_go_before_later_ones_in_their_order() -> None:
    """Deadlines stay in order, so that the first that waits is the first whose time is up."""
    reads, reader = make()
    for name in ("a", "b", "c"):
        reader.read(name)
        if name != "c":
            reads.begin(0.0)
    reads.restart()
    _, in_order = reads._rounds[reads.begin(0.0)]
    for on_result, _ in in_order:
        on_result(None)
    assert list(reader.told) == ["a", "b", "c"]


def test_stop_completes_all() -> None:
    reads, reader = make()
    reader.read("a")
    reads.confirmed(reads.begin(0.0), 10, applied=3, now_s=0.0)
    reader.read("b")
    reads.begin(0.0)
    reader.read("c")
    reads.fail_all(Stopped("stopped"))
    assert reader.told == dict.fromkeys("abc", Stopped)


def test_contexts_differ_between_processes() -> None:
    def first_context(incarnation: int) -> int:
        return Reads(incarnation, gather_s=0.01, linger_s=0.001).begin(0.0)

    assert first_context(1) != first_context(2)
    assert first_context(2**64 - 1) < 2**63
