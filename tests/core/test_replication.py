"""Entries get from the leader to everyone, in order, once, whatever the network does."""

from __future__ import annotations

import pytest

from raft.core import DropReason, Message, MessageType, ProgressState, ProposalDropped, Role
from raft.core.log import Log


def test_a_proposal_is_applied_everywhere(cluster):
    network = cluster(3)
    network.elect(1)
    ids = network.propose(1, b"a", b"b")
    network.quiesce()
    assert ids == [(1, 2), (1, 3)]
    assert [network.data(member) for member in (1, 2, 3)] == [[b"a", b"b"]] * 3


def test_a_single_voter_commits_only_what_its_disk_holds(cluster):
    network = cluster(1)
    network.elect(1)
    network.propose(1, b"a")
    network[1].take()
    assert network.core(1).commit == 1
    network[1].sync()
    assert network.core(1).commit == 2
    network.quiesce()
    assert network.data(1) == [b"a"]


def test_the_leader_commits_before_its_own_disk_when_others_suffice(cluster):
    network = cluster(3)
    network.elect(1)
    network.propose(1, b"a")
    network[1].take()
    network.deliver_all(2, 3)
    network[2].run()
    network[3].run()
    network.deliver_all(1)
    core = network.core(1)
    assert core.commit == 2
    assert core.status().stable == 1
    network[1].take()
    assert not network[1].applying, "nothing is applied before this disk holds it"
    network[1].sync(len(network[1].writing))
    network[1].run()
    assert network.data(1) == [b"a"]


def test_a_follower_refuses_proposals_with_a_hint(cluster):
    network = cluster(3)
    network.elect(2)
    with pytest.raises(ProposalDropped) as caught:
        network.propose(1, b"a")
    assert (caught.value.reason, caught.value.leader) == (DropReason.NOT_LEADER, 2)


def test_one_iteration_makes_one_append_per_follower(cluster):
    network = cluster(3)
    network.elect(1)
    for number in range(5):
        network.propose(1, b"%d" % number)
    network[1].take()
    appends = network.in_bag(MessageType.APPEND)
    assert [(append.to, len(append.entries)) for append in appends] == [(2, 5), (3, 5)]


def test_no_commit_broadcast_when_an_append_leaves_in_the_same_iteration(cluster):
    network = cluster(3)
    network.elect(1)
    network.propose(1, b"a")
    network[1].run()
    network.deliver_all(2)
    network[2].run()
    network.deliver_all(1)
    network.propose(1, b"b")
    network.bag.clear()
    network[1].take()
    appends = network.in_bag(MessageType.APPEND)
    assert [(append.to, len(append.entries), append.commit) for append in appends] == [(2, 1, 2), (3, 1, 2)]


def test_a_commit_broadcast_is_not_answered(cluster):
    network = cluster(3)
    network.elect(1)
    network.propose(1, b"a")
    network[1].run()
    network.deliver_all(2, 3)
    network[2].run()
    network[3].run()
    network.deliver_all(1)
    network[1].run()
    broadcasts = network.in_bag(MessageType.APPEND)
    assert [(broadcast.to, list(broadcast.entries), broadcast.commit) for broadcast in broadcasts] == [
        (2, [], 2),
        (3, [], 2),
    ]
    network.deliver_all(2, 3)
    network[2].run()
    network[3].run()
    assert network.bag == []
    assert network.data(2) == network.data(3) == [b"a"]


def test_a_heartbeat_makes_up_for_a_lost_commit_broadcast(cluster):
    network = cluster(3)
    network.elect(1)
    network.drop = lambda m: m.type is MessageType.APPEND and not m.entries
    network.propose(1, b"a")
    network.quiesce()
    assert network.data(2) == []
    network.tick(1)
    network.quiesce()
    assert network.data(2) == [b"a"]


def test_a_lost_append_is_sent_again(cluster):
    network = cluster(3)
    network.elect(1)
    network.drop = lambda m: m.type is MessageType.APPEND and m.to == 3
    network.propose(1, b"a")
    network.quiesce()
    network.drop = lambda m: False
    network.run_ticks(3)
    assert network.data(3) == [b"a"]


def test_full_inflights_stall_until_a_heartbeat_is_answered(cluster):
    network = cluster(2, inflight_messages_max=3)
    network.elect(1)
    network.drop = lambda m: m.type is MessageType.APPEND
    for number in range(6):
        network.propose(1, b"%d" % number)
        network.quiesce()
    peer = network.core(1).status().peers[1]
    assert (peer.state, peer.inflight_messages, peer.paused) == (ProgressState.REPLICATE, 3, True)
    network.drop = lambda m: False
    network.run_ticks(2)
    assert network.data(2) == [b"%d" % number for number in range(6)]


def test_inflights_are_bounded_in_bytes(cluster):
    network = cluster(2, inflight_bytes_max=100)
    network.elect(1)
    network.drop = lambda m: m.type is MessageType.APPEND
    for _ in range(10):
        network.propose(1, b"x" * 30)
        network.quiesce()
    assert network.core(1).status().peers[1].inflight_bytes == 120


def test_appends_are_bounded_in_bytes_and_count(cluster):
    network = cluster(2, append_bytes_max=10, append_entries_max=3)
    network.elect(1)
    network.propose(1, *[b"123456"] * 3, *[b"1"] * 6)
    network[1].take()
    sizes = [[len(entry.data) for entry in m.entries] for m in network.in_bag(MessageType.APPEND)]
    assert sizes == [[6], [6], [6, 1, 1], [1, 1, 1], [1]]


def test_duplicated_and_reordered_messages_change_nothing(cluster):
    network = cluster(3)
    network.elect(1)
    network.propose(1, b"a")
    network[1].take()
    network.propose(1, b"b")
    network[1].take()
    first, second = network.in_bag(MessageType.APPEND, to=2)
    for message in (second, first, second, first, first):
        network[2].do(lambda core, message=message: core.step(message))
    assert network.log(2) == [(1, 1), (1, 2), (1, 3)]
    network.quiesce()
    assert network.data(2) == [b"a", b"b"]


def test_a_stale_rejection_does_not_move_progress_back(cluster):
    network = cluster(3)
    network.elect(1)
    network.propose(1, b"a")
    network.quiesce()
    before = network.core(1).status().peers[1]
    stale = network[2].core._state.send(MessageType.APPEND_RESPONSE, 1)
    stale.index, stale.reject, stale.reject_hint = 1, True, 0
    network[2].core._state.messages.clear()
    network.deliver(stale)
    assert network.core(1).status().peers[1] == before


def test_too_many_uncommitted_bytes_refuse_proposals_and_recover(cluster):
    network = cluster(3, uncommitted_bytes_max=100)
    network.elect(1)
    network.isolate(1)
    network.propose(1, b"x" * 500)
    with pytest.raises(ProposalDropped) as caught:
        network.propose(1, b"y")
    assert caught.value.reason is DropReason.UNCOMMITTED_FULL
    assert network.core(1).uncommitted_bytes == 500
    network.quiesce()
    network.heal()
    network.run_ticks(3)
    assert network.core(1).uncommitted_bytes == 0
    assert network.try_propose(1, b"y")


def test_apply_work_is_paged_and_bounded(cluster):
    network = cluster(1, apply_bytes_max=10, applying_bytes_max=25)
    network.elect(1)
    network.propose(1, *[b"12345"] * 12)
    network[1].take()
    network[1].sync()
    while network.core(1).has_ready():
        network[1].take()
    assert [len(work.entries) for work in network[1].applying] == [2, 2, 1]
    network[1].apply()
    assert network.core(1).has_ready()
    network.quiesce()
    assert len(network.data(1)) == 12


def test_proposing_nothing_makes_nothing(cluster):
    network = cluster(1)
    network.elect(1)
    assert network.propose(1) == []
    assert network.core(1).last_index == 1


def test_an_unreachable_member_is_probed(cluster):
    network = cluster(3)
    network.elect(1)
    for member in (2, 9):
        network[1].do(lambda core, member=member: core.report_unreachable(member))
    assert [peer.state.value for peer in network.core(1).status().peers] == [
        "replicate",
        "probe",
        "replicate",
    ]
    network.run_ticks(1)
    assert network.core(1).status().peers[1].state is ProgressState.REPLICATE


def test_messages_of_strangers_are_ignored(cluster):
    network = cluster(3)
    network.elect(1)
    stranger = network.core(2)._state.send(MessageType.APPEND_RESPONSE, 1)
    network.core(2)._state.messages.clear()
    stranger.from_, stranger.index = 9, 1
    network.deliver(stranger)
    stranger.index, stranger.from_ = 999, 2  # acknowledges what was never sent
    network.deliver(stranger)
    assert network.core(1).status().peers[1].match == 1
    assert network.core(1).role is Role.LEADER


def _append_of_an_unconfirmed_tail(network):
    """2 holds entries 2 and 3 of a dead leader; a new one matches only entry 1, with a higher commit."""
    network.elect(1)
    network.propose(1, b"x", b"y")
    network[1].run()
    network.deliver_all(2)
    network[2].run()
    network.deliver(Message(MessageType.APPEND, 2, 3, 2, 1, 1, (), 3))
    return network.core(2).commit


def test_a_commit_index_counts_only_up_to_what_was_confirmed_to_match(cluster):
    assert _append_of_an_unconfirmed_tail(cluster(3)) == 1


def test_a_trusted_commit_index_would_commit_a_dead_leaders_entries(cluster, monkeypatch):
    """Negative control of the test before."""
    accept = Log.accept

    def trusting(self, prev_index, prev_term, entries, commit):
        last = accept(self, prev_index, prev_term, entries, commit)
        self.commit_to(min(commit, self.last_index))
        return last

    monkeypatch.setattr(Log, "accept", trusting)
    assert _append_of_an_unconfirmed_tail(cluster(3)) == 3


def test_a_deferred_commit_broadcast_rides_on_the_next_append(cluster):
    network = cluster(3, commit_broadcast_deferred=True)
    network.elect(1)
    network.propose(1, b"a")
    network.quiesce()
    assert network.core(1).commit == 2
    assert [network.core(member).commit for member in (2, 3)] == [1, 1], "no follower gets a commit broadcast"
    assert network.core(1).commit_broadcast_due
    network.propose(1, b"b")
    network.quiesce()
    assert [network.core(member).commit for member in (2, 3)] == [2, 2], "the next append carries it"


def test_a_deferred_commit_broadcast_leaves_when_requested_or_awaited(cluster):
    network = cluster(3, commit_broadcast_deferred=True)
    network.elect(1)
    network.propose(1, b"a")
    network.quiesce()
    network[1].do(lambda core: core.broadcast_commit())
    network.quiesce()
    assert [network.core(member).commit for member in (2, 3)] == [2, 2]
    assert not network.core(1).commit_broadcast_due
    network.propose(1, b"b")
    network[1].do(lambda core: core.hasten_commit_broadcast([3]))
    network.quiesce()
    assert [network.core(member).commit for member in (2, 3)] == [2, 3], "only to the member that awaits it"


def test_heartbeats_carry_what_every_member_holds(cluster):
    network = cluster(3)
    network.elect(1)
    network.partition([1, 2], [3])
    network.propose(1, b"a", b"b")
    network.quiesce()
    network.run_ticks(2)
    assert [network.core(member).held_by_all for member in (1, 2)] == [1, 1], "one of them lacks the rest"
    network.heal()
    network.run_ticks(4)
    assert [network.core(member).held_by_all for member in (1, 2, 3)] == [3, 3, 3]


def test_a_snapshot_older_than_the_log_is_followed_by_a_newer_one(cluster):
    """The member installed a snapshot, but the leader has compacted past it meanwhile."""
    network = cluster(3)
    network.elect(1)
    network.partition([1, 2], [3])
    network.propose(1, *[b"%d" % number for number in range(10)])
    network.quiesce()
    network[1].compact()
    network.heal()
    network.drop = lambda message: message.type is MessageType.SNAPSHOT
    network.run_ticks(2)
    progress = network.core(1)._state.tracker.progress[3]
    assert progress.state is ProgressState.SNAPSHOT
    asked = progress.pending_snapshot
    network.propose(1, *[b"%d" % number for number in range(10)])
    network.quiesce()
    network[1].compact()
    term = network.core(1).term
    network.deliver(Message(MessageType.APPEND_RESPONSE, 1, 3, term, index=asked + 1))
    network[1].run()
    assert progress.state is ProgressState.SNAPSHOT
    assert progress.pending_snapshot > asked + 1, "a newer snapshot is requested"
    assert progress.next == progress.pending_snapshot + 1
