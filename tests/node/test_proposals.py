"""Sessions, order and the outcome rule, without a loop or a network."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from raft.node.envelope import decode_envelope
from raft.node.forwarding_sessions import SESSIONS_MAX, ForwardingSessions
from raft.node.node_config import NodeConfig
from raft.node.node_errors import NodeError, NoLeader, NotApplied, OutcomeUnknown, RequestTimedOut, Stopped
from raft.node.proposal_queue import Batch, ProposalQueue, complete_batch
from raft.transport.transport_protocol import ForwardedBatch

INCARNATION = 77
LEADER_INCARNATION = 88
CONFIG = NodeConfig(member_id=1, cluster_id=9, batch_operations_max=4)


class Client:
    """Offers commands and keeps their answers."""

    def __init__(self, proposals: ProposalQueue) -> None:
        self.proposals = proposals
        self.told: dict[bytes, list[object]] = {}

    def offer(self, *commands: bytes, deadline_s: float = 7.0) -> None:
        for command in commands:
            self.told[command] = []

            def on_result(outcome: object, error: NodeError | None, command: bytes = command) -> None:
                self.told[command].append(outcome if error is None else type(error))

            assert self.proposals.offer(command, on_result, deadline_s)


def commands_of(batch: Batch) -> list[bytes]:
    return list(decode_envelope(batch.data).commands)


@pytest.fixture
def proposals() -> ProposalQueue:
    return ProposalQueue(CONFIG, INCARNATION)


@pytest.fixture
def client(proposals: ProposalQueue) -> Client:
    return Client(proposals)


def take(proposals: ProposalQueue) -> Batch:
    batch = proposals.take_batch(0.0)
    assert batch is not None
    return batch


def test_a_batch_completes_its_commands_with_their_outcomes(proposals: ProposalQueue, client: Client) -> None:
    client.offer(b"a", b"b")
    assert proposals.open_session(5, 2, LEADER_INCARNATION)
    batch = take(proposals)
    assert commands_of(batch) == [b"a", b"b"]
    assert (batch.position, decode_envelope(batch.data)[:2]) == (1, (1, INCARNATION))
    found = proposals.applied(batch.counter, 0.0)
    assert found is batch
    complete_batch(batch, ["A", "B"])
    assert client.told == {b"a": ["A"], b"b": ["B"]}
    assert proposals.applied(batch.counter, 0.0) is None, "a batch is applied for its readers once"


def test_one_readers_exception_does_not_starve_the_others(proposals: ProposalQueue, client: Client) -> None:
    def broken(outcome: object, error: NodeError | None) -> None:
        raise RuntimeError("reader's bug")

    proposals.offer(b"x", broken, 7.0)
    client.offer(b"y")
    proposals.open_session(5, 2, LEADER_INCARNATION)
    batch = take(proposals)
    proposals.applied(batch.counter, 0.0)
    complete_batch(batch, [1, 2])
    assert client.told[b"y"] == [2]


def test_commands_gather_behind_a_batch_in_flight(proposals: ProposalQueue, client: Client) -> None:
    client.offer(b"a")
    proposals.open_session(5, 2, LEADER_INCARNATION)
    assert proposals.gather_wait_s(0.0) == 0.0, "nothing in flight: a lone command goes at once"
    take(proposals)
    client.offer(b"b")
    assert proposals.gather_wait_s(0.002) == pytest.approx(0.008)
    assert proposals.gather_wait_s(0.011) == 0.0, "but not for ever"
    client.offer(b"c", b"d", b"e")
    assert proposals.gather_wait_s(0.002) == 0.0, "a full batch has nothing to gain"


def test_clients_answered_together_are_waited_for_and_a_lone_one_is_not(
    proposals: ProposalQueue, client: Client
) -> None:
    client.offer(b"a", b"b", b"c")
    proposals.open_session(5, 2, LEADER_INCARNATION)
    proposals.applied(take(proposals).counter, 1.0)
    client.offer(b"a2")
    assert 0.0 < proposals.gather_wait_s(1.0001) <= CONFIG.linger_ms / 1000
    assert proposals.gather_wait_s(1.1) == 0.0, "not for long"
    client.offer(b"b2", b"c2")
    assert proposals.gather_wait_s(1.0001) == 0.0, "all are back"
    proposals.applied(take(proposals).counter, 2.0)
    client.offer(b"d")
    proposals.applied(take(proposals).counter, 3.0)
    client.offer(b"d2")
    assert proposals.gather_wait_s(3.0) == 0.0


def test_first_entry_of_a_higher_term_frees_what_is_in_flight_in_order(
    proposals: ProposalQueue, client: Client
) -> None:
    client.offer(b"a", b"b", b"c", b"d", b"e")
    proposals.open_session(5, 2, LEADER_INCARNATION)
    first, second = take(proposals), take(proposals)
    client.offer(b"f")
    proposals.term_applied(5)
    assert not proposals.open_session(6, 3, 99), "undecided commands of term 5 come first"
    proposals.term_applied(6)
    assert proposals.open_session(6, 3, 99)
    again = [take(proposals), take(proposals)]
    assert [commands_of(batch) for batch in again] == [[b"a", b"b", b"c", b"d"], [b"e", b"f"]]
    assert [batch.position for batch in again] == [1, 2]
    counters = {first.counter, second.counter, *(batch.counter for batch in again)}
    assert len(counters) == 4, "a repeated batch has a name of its own"
    assert proposals.applied(first.counter, 0.0) is None
    assert all(not told for told in client.told.values())


def test_expired_commands_are_unknown_and_not_repeated(proposals: ProposalQueue, client: Client) -> None:
    client.offer(b"a", deadline_s=1.0)
    client.offer(b"b", deadline_s=2.0)
    proposals.open_session(5, 2, LEADER_INCARNATION)
    take(proposals)
    proposals.expire(1.0, leader=2)
    assert client.told == {b"a": [RequestTimedOut], b"b": []}
    proposals.term_applied(6)
    proposals.open_session(6, 2, LEADER_INCARNATION)
    again = take(proposals)
    assert commands_of(again) == [b"b"]
    proposals.applied(again.counter, 0.0)
    complete_batch(again, ["B"])
    assert client.told == {b"a": [RequestTimedOut], b"b": ["B"]}


def test_an_expired_command_that_is_applied_after_all_is_not_told_twice(
    proposals: ProposalQueue, client: Client
) -> None:
    client.offer(b"a", deadline_s=1.0)
    client.offer(b"b", deadline_s=2.0)
    proposals.open_session(5, 2, LEADER_INCARNATION)
    batch = take(proposals)
    proposals.expire(1.5, leader=2)
    assert proposals.applied(batch.counter, 0.0) is batch
    complete_batch(batch, ["A", "B"])
    assert client.told == {b"a": [RequestTimedOut], b"b": ["B"]}


def test_waiting_commands_expire_as_certainly_not_applied(proposals: ProposalQueue, client: Client) -> None:
    client.offer(b"a", deadline_s=1.0)
    client.offer(b"b", deadline_s=2.0)
    proposals.expire(1.0, leader=0)
    proposals.expire(2.0, leader=3)
    assert client.told == {b"a": [NoLeader], b"b": [NotApplied]}


def test_refusal_frees_from_its_position_on_and_closes_the_session(
    proposals: ProposalQueue, client: Client
) -> None:
    client.offer(*(bytes([number]) for number in range(12)))
    proposals.open_session(5, 2, LEADER_INCARNATION)
    batches = [take(proposals) for _ in range(3)]
    proposals.refused(5, 2, LEADER_INCARNATION + 1, 1)
    assert proposals.open_session(5, 2, LEADER_INCARNATION), "another process cannot speak for this one"
    proposals.refused(5, 2, LEADER_INCARNATION, 2)
    assert not proposals.open_session(5, 2, LEADER_INCARNATION)
    assert len(proposals.waiting) == 8
    assert proposals.applied(batches[0].counter, 0.0) is batches[0], "the first was appended and stays"
    assert not proposals.open_session(5, 2, LEADER_INCARNATION), "a refusal holds for the whole term"
    assert proposals.open_session(6, 3, 99)
    assert commands_of(take(proposals)) == commands_of(batches[1])


def test_nothing_is_sent_to_a_new_process_of_the_leader_in_the_same_term(
    proposals: ProposalQueue, client: Client
) -> None:
    client.offer(b"a")
    proposals.open_session(5, 2, LEADER_INCARNATION)
    take(proposals)
    assert not proposals.unapplied(5, 2, LEADER_INCARNATION + 1, 0.0)
    assert not proposals.open_session(5, 2, LEADER_INCARNATION + 1)
    assert proposals.open_session(5, 2, LEADER_INCARNATION), "a late handshake closes nothing"


def test_what_is_in_flight_is_sent_again_unchanged(proposals: ProposalQueue, client: Client) -> None:
    client.offer(*(bytes([number]) for number in range(8)))
    proposals.open_session(5, 2, LEADER_INCARNATION)
    batches = [take(proposals) for _ in range(2)]
    again = proposals.unapplied(5, 2, LEADER_INCARNATION, 3.0)
    assert [(m.counter, m.data) for m in again] == [(b.position, b.data) for b in batches]
    assert proposals.forwarded_s == 3.0


def test_a_stop_leaves_unknown_only_what_was_forwarded(proposals: ProposalQueue, client: Client) -> None:
    client.offer(b"a")
    proposals.open_session(5, 2, LEADER_INCARNATION)
    take(proposals)
    client.offer(b"b")
    proposals.fail_all(Stopped("stopped"), OutcomeUnknown("stopped"))
    assert client.told == {b"a": [OutcomeUnknown], b"b": [Stopped]}


def test_the_queue_is_bounded() -> None:
    proposals = ProposalQueue(replace(CONFIG, operations_waiting_max=2, bytes_waiting_max=10), INCARNATION)
    assert proposals.offer(b"12345678", print, 1.0)
    assert not proposals.offer(b"123", print, 1.0), "bytes"
    assert proposals.offer(b"1", print, 1.0)
    assert not proposals.offer(b"1", print, 1.0), "count"


@pytest.mark.parametrize("seed", range(50))
def test_leader_takes_each_batch_once_in_order_whatever_is_repeated(seed: int) -> None:
    """Random repeats from any position, as after reconnects, never duplicate, skip or reorder."""
    rng = random.Random(seed)
    leader = ForwardingSessions()
    leader.lead(5)
    batches = [ForwardedBatch(5, INCARNATION, position, bytes([position])) for position in range(1, 30)]
    log: list[bytes] = []
    sent = 0
    while len(log) < len(batches):
        start = rng.randrange(max(1, sent + 1))
        end = min(len(batches), start + rng.randrange(1, 8))
        sent = max(sent, end)
        for batch in batches[start:end]:
            assert leader.on_batch(2, batch, 5) is None
        if rng.random() < 0.7:
            log.extend(leader.pending())
            leader.appended()
        assert log == [batch.data for batch in batches[: len(log)]]


def test_refusal_names_only_what_was_never_appended() -> None:
    leader = ForwardingSessions()
    leader.lead(5)
    for position in (1, 2):
        leader.on_batch(2, ForwardedBatch(5, INCARNATION, position, b"x"), 5)
    leader.appended()
    leader.on_batch(2, ForwardedBatch(5, INCARNATION, 3, b"y"), 5)
    [(member, refusal)] = leader.step_down()
    assert (member, refusal.counter, refusal.term) == (2, 3, 5)
    assert not leader.pending()
    again = leader.on_batch(2, ForwardedBatch(5, INCARNATION, 1, b"x"), 0)
    assert again is not None
    assert again.counter == 3, "batches 1 and 2 are in the log"
    stranger = leader.on_batch(3, ForwardedBatch(5, INCARNATION, 4, b"x"), 0)
    assert stranger is not None
    assert stranger.counter == 1, "of this origin nothing was appended"
    leader.lead(9)
    assert leader.on_batch(2, ForwardedBatch(5, INCARNATION, 1, b"x"), 9) is None, "too long ago to know"
    never = leader.on_batch(2, ForwardedBatch(11, INCARNATION, 7, b"x"), 9)
    assert never is not None
    assert never.counter == 1


def test_two_processes_of_one_origin_do_not_share_a_session() -> None:
    leader = ForwardingSessions()
    leader.lead(5)
    leader.on_batch(2, ForwardedBatch(5, INCARNATION, 1, b"old"), 5)
    leader.on_batch(2, ForwardedBatch(5, INCARNATION + 1, 1, b"new"), 5)
    leader.on_batch(2, ForwardedBatch(5, INCARNATION, 1, b"old"), 5)
    assert leader.pending() == [b"old", b"new"]


def test_the_restarts_of_one_member_never_make_the_leader_forget_another() -> None:
    """A forgotten session takes nothing from the middle, and takes or disowns again what is in the log."""
    leader = ForwardingSessions()
    leader.lead(5)
    first, second = (ForwardedBatch(5, INCARNATION, position, b"living") for position in (1, 2))
    leader.on_batch(3, first, 5)
    log = leader.pending()
    leader.appended()
    for restart in range(2 * SESSIONS_MAX):
        leader.on_batch(2, ForwardedBatch(5, 1000 + restart, 1, b"restarted"), 5)
        leader.appended()
    assert len(leader._sessions) == SESSIONS_MAX
    for batch in (first, second, second, first):
        assert leader.on_batch(3, batch, 5) is None
    log += leader.pending()
    leader.appended()
    assert log == [b"living", b"living"]
    assert leader.step_down() == []
    refusal = leader.on_batch(3, second, 0)
    assert refusal is not None
    assert refusal.counter == 3, "what it sent is in the log"


def test_as_many_members_as_sessions_are_all_remembered() -> None:
    leader = ForwardingSessions()
    leader.lead(5)
    for member in range(1, SESSIONS_MAX + 3):
        leader.on_batch(member, ForwardedBatch(5, INCARNATION, 1, b"x"), 5)
    leader.on_batch(1, ForwardedBatch(5, INCARNATION, 1, b"x"), 5)
    assert len(leader.pending()) == SESSIONS_MAX + 2
