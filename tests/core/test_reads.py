"""Linearizable reads: which responses confirm them, which do not, and that each is answered or dropped."""

from __future__ import annotations

import pytest

from raft.core import ConfChange, ConfStep, ConfStepKind, MessageType, Role
from raft.core.read_index import ReadRounds


def test_a_single_voter_answers_at_once(cluster):
    network = cluster(1)
    network.elect(1)
    network.read(1, 7)
    ready = network[1].take()
    assert ready.read_states == [(7, 1)]
    assert not ready.messages


def test_reads_of_one_iteration_share_one_round(cluster):
    network = cluster(3)
    network.elect(1)
    for context in range(10):
        network.read(1, context)
    network[1].take()
    assert len(network.in_bag(MessageType.HEARTBEAT)) == 2
    network.quiesce()
    assert network[1].reads == dict.fromkeys(range(10), 1)


def test_a_read_needs_a_quorum(cluster):
    network = cluster(5)
    network.elect(1)
    network.read(1, 7)
    network[1].run()
    network.deliver_all(2)
    network[2].run()
    network.deliver_all(1)
    network[1].run()
    assert network[1].reads == {}
    network.quiesce()
    assert network[1].reads == {7: 1}


def test_a_read_joins_only_a_round_begun_after_it_arrived(cluster):
    network = cluster(3)
    network.elect(1)
    network.read(1, 1)
    network[1].take()
    network.read(1, 2)
    network.deliver_all(2, 3)
    network[2].run()
    network[3].run()
    network.deliver_all(1)
    assert network.core(1)._state.read_states == [(1, 1)]
    network.quiesce()
    assert network[1].reads == {1: 1, 2: 1}


def test_an_answer_to_a_later_round_confirms_the_earlier_ones(cluster):
    network = cluster(3)
    network.elect(1)
    network.read(1, 1)
    network[1].take()
    network.bag.clear()  # the first round's heartbeats are lost
    network.read(1, 2)
    network.quiesce()
    assert network[1].reads == {1: 1, 2: 1}


def test_answers_of_an_old_round_do_not_confirm_a_retry(cluster):
    """etcd #20418: a retry under the same id let answers from before it count."""
    network = cluster(3)
    network.elect(1)
    network.read(1, 1)
    network[1].take()
    network.deliver_all(2, 3)
    network[2].run()
    network[3].run()
    late = network.in_bag(MessageType.HEARTBEAT_RESPONSE)
    assert len(late) == 2
    network.bag.clear()
    # Another leader is elected and commits; the old one does not know.
    network.isolate(1)
    for member in (2, 3):
        network[member].do(lambda core: core.forget_leader())
    network.campaign(2)
    network.quiesce(2, 3)
    network.propose(2, b"new")
    network.quiesce(2, 3)
    # A new read under the context of the lost one; then the late answers arrive.
    network[1].reads.clear()
    network.read(1, 1)
    network[1].take()
    for message in late:
        network.deliver(message)
    # They confirm the first read, requested before the new leader existed, but must not confirm the new one.
    assert len(network.core(1)._state.read_states) == 1
    assert network.core(1)._state.reads.pending == 1
    network[1].take()
    network[1].reads.clear()
    network.heal()
    network.run_ticks(3)
    assert network[1].reads == {}
    assert network[1].dropped == [1], "and is dropped when the old leader learns of the new one"


def test_with_a_reused_round_id_the_late_answers_would_confirm_it(cluster, monkeypatch):
    """Negative control of the test before."""
    begin = ReadRounds.begin

    def reusing(self, read_index):
        begin(self, read_index)
        self.last_id = 1
        self.rounds[-1] = self.rounds[-1]._replace(id=1)
        return 1

    monkeypatch.setattr(ReadRounds, "begin", reusing)
    with pytest.raises(AssertionError):
        test_answers_of_an_old_round_do_not_confirm_a_retry(cluster)


def test_a_retry_takes_a_new_round_id(cluster):
    network = cluster(3)
    network.elect(1)
    network.drop = lambda m: m.type is MessageType.HEARTBEAT
    network.read(1, 1)
    network[1].run()
    network.drop = lambda m: False
    network.tick(1)
    network[1].take()
    retries = network.in_bag(MessageType.HEARTBEAT)
    assert [retry.context for retry in retries] == [2, 2]
    network.quiesce()
    assert network[1].reads == {1: 1}


def test_nothing_is_read_before_an_own_term_commit(cluster):
    network = cluster(3)
    network.elect(1)
    network.propose(1, b"a")
    network.quiesce()
    network.crash(1)
    network.drop = lambda m: m.type is MessageType.APPEND
    for member in (2, 3):
        network[member].do(lambda core: core.forget_leader())
    network.campaign(2)
    network.quiesce()
    assert network.core(2).role is Role.LEADER
    network.read(2, 1)
    network.run_ticks(2)
    assert network[2].reads == {}
    network.drop = lambda m: False
    network.run_ticks(2)
    assert network[2].reads == {1: 3}


def test_a_followers_read_goes_to_the_leader(cluster):
    network = cluster(3, learners=(4,))
    network.elect(1)
    for member in (2, 4):
        network.read(member, 40 + member)
    network.quiesce()
    assert network[2].reads == {42: 1}
    assert network[4].reads == {44: 1}


def test_a_followers_context_may_repeat_without_confusion(cluster):
    network = cluster(3)
    network.elect(1)
    network.read(2, 5)
    network[2].run()
    first = network.in_bag(MessageType.READ_INDEX)[0]
    network[2].do(lambda core: core.forget_leader())
    network[2].run()
    assert network[2].dropped == [5]
    network.deliver(first)
    network[1].run()
    network.quiesce(1, 3)
    network.tick(1)
    network[1].run()
    network.deliver_all(2)
    network.read(2, 5)
    assert network[2].reads == {}, "the late answer is to the read given up"
    network.quiesce()
    assert network[2].reads == {5: 1}


def test_a_restarted_follower_takes_no_answer_meant_for_its_old_process(cluster):
    network = cluster(3)
    network.elect(1)
    network.read(2, 5)
    network[2].run()
    network.crash(2)
    network.restart(2)
    network.quiesce(1, 3)
    network.tick(1)
    network[1].run()
    answers = network.in_bag(MessageType.READ_INDEX_RESPONSE, to=2)
    assert len(answers) == 1
    network.deliver_all(2)
    network.read(2, 6)
    network.deliver(answers[0])
    assert network.core(2)._state.read_states == []


def test_without_a_leader_a_read_is_dropped_at_once(cluster):
    network = cluster(3)
    network.read(1, 7)
    ready = network[1].take()
    assert ready.dropped_reads == [7]


def test_pending_reads_are_dropped_at_step_down_and_followers_told(cluster):
    network = cluster(3)
    network.elect(1)
    network.drop = lambda m: m.type is MessageType.HEARTBEAT
    network.read(1, 7)
    network.read(2, 8)
    network.quiesce()
    network.drop = lambda m: False
    network.partition([1, 2], [3])
    network.core(2)._state.election_elapsed = 10
    network[2].do(lambda core: core.forget_leader())
    assert network.core(2)._state.dropped_reads == [8]
    network.tick(1, count=20)  # no response: CheckQuorum
    assert network.core(1).role is Role.FOLLOWER
    network[1].run()
    assert network[1].dropped == [7]
    assert [m.reject for m in network.in_bag(MessageType.READ_INDEX_RESPONSE)] == [True]


def test_a_read_sent_to_a_former_leader_is_refused(cluster):
    network = cluster(3)
    network.elect(1)
    network.read(3, 7)
    network[3].run()
    read = network.bag.pop()
    for member in (1, 2):
        network[member].do(lambda core: core.forget_leader())
    network.core(1)._state.election_elapsed = network.core(3)._state.election_elapsed = 10
    network.campaign(2)
    network.quiesce(1, 2)
    assert network.core(1).role is Role.FOLLOWER
    network.deliver(read)
    network.quiesce()
    assert network[3].reads == {}
    assert network[3].dropped == [7]


@pytest.mark.parametrize("member", [1, 2])
def test_pending_reads_are_bounded(cluster, member):
    network = cluster(3, pending_reads_max=3)
    network.elect(1)
    network.drop = lambda m: m.type in (MessageType.HEARTBEAT, MessageType.READ_INDEX)
    for context in range(5):
        network.read(member, context)
    network.quiesce()
    # A leader refuses the newest reads; a follower drops its oldest, which are most likely lost.
    assert network[member].dropped == ([3, 4] if member == 1 else [0, 1])


def test_a_leader_refuses_a_followers_read_when_full(cluster):
    network = cluster(3, pending_reads_max=1)
    network.elect(1)
    network.drop = lambda m: m.type is MessageType.HEARTBEAT
    network.read(1, 1)
    network.read(2, 2)
    network.quiesce()
    assert network[2].dropped == [2]


def test_a_smaller_quorum_confirms_what_waited(cluster):
    network = cluster(2)
    network.elect(1)
    change = ConfChange((ConfStep(ConfStepKind.REMOVE, 2),))
    network.drop = lambda m: m.type is MessageType.HEARTBEAT
    network.read(1, 1)
    network.change_conf(1, change)
    network.quiesce()
    assert network.core(1).conf.voters == (1,)
    assert network[1].reads == {1: 1}


def test_a_removed_leader_answers_no_more(cluster):
    network = cluster(3)
    network.elect(1)
    network.drop = lambda m: m.type is MessageType.HEARTBEAT
    network.read(1, 1)
    network.change_conf(1, ConfChange((ConfStep(ConfStepKind.REMOVE, 1),)))
    network.quiesce()
    assert network.core(1).role is Role.FOLLOWER
    assert network[1].dropped == [1]
