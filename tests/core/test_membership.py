"""Members come, go, are promoted and demoted, one at a time or through a joint configuration."""

from __future__ import annotations

import pytest

from raft.core import (
    ConfChange,
    ConfState,
    ConfStep,
    ConfStepKind,
    ConfTransition,
    DropReason,
    Message,
    MessageType,
    ProgressState,
    ProposalDropped,
    Role,
    SnapshotMeta,
)
from raft.core.quorum import majority_committed

ADD, LEARN, REMOVE = ConfStepKind.ADD_VOTER, ConfStepKind.ADD_LEARNER, ConfStepKind.REMOVE


def change(*steps, transition=ConfTransition.AUTO):
    return ConfChange(tuple(ConfStep(*step) for step in steps), transition)


def newcomer(network, member):
    """A member to be added: it starts from the cluster's first configuration and an empty log."""
    return network.add(member, network[1].disk.backend_conf)


def test_a_new_voter_is_caught_up_and_counts(cluster):
    network = cluster(1)
    network.elect(1)
    network.propose(1, b"a")
    network.quiesce()
    newcomer(network, 2)
    network.change_conf(1, change((ADD, 2)))
    network.quiesce()
    network.run_ticks(2)
    assert network.core(2).conf.voters == (1, 2)
    network.crash(2)
    network.propose(1, b"b")
    network.quiesce()
    assert network.data(1) == [b"a"], "two voters need both"


def test_a_learner_replicates_but_does_not_count(cluster):
    network = cluster(3, learners=(4,))
    network.elect(1)
    network.propose(1, b"a")
    network.quiesce()
    assert network.data(4) == [b"a"]
    network.crash(2)
    network.crash(3)
    network.propose(1, b"b")
    network.quiesce()
    assert network.core(1).commit == 2
    network.run_ticks(40)
    assert network.core(4).role is Role.FOLLOWER, "a learner never stands"


def test_a_learner_asked_for_its_vote_gives_it(cluster):
    """It may have been promoted without knowing it yet (etcd #10998)."""
    network = cluster(2, learners=(3,), pre_vote=False)
    network.elect(1)
    network.partition([1, 2], [3])
    network.change_conf(1, change((ADD, 3)))
    network.quiesce()
    assert network.core(3).conf.learners == (3,)
    network.crash(1)
    network.heal()
    network[2].do(lambda core: core.forget_leader())
    network[3].do(lambda core: core.forget_leader())
    network.campaign(2)
    network.quiesce()
    assert network.core(2).role is Role.LEADER
    assert network.core(3).conf.voters == (1, 2, 3)


def test_only_one_change_may_be_unapplied(cluster):
    network = cluster(3)
    network.elect(1)
    network.change_conf(1, change((LEARN, 4)))
    with pytest.raises(ProposalDropped) as caught:
        network.change_conf(1, change((LEARN, 5)))
    assert caught.value.reason is DropReason.CONF_PENDING
    network.quiesce()
    network.change_conf(1, change((LEARN, 5)))


def test_no_change_before_an_entry_of_the_own_term_is_applied(cluster):
    """The single-server bug of 2015: an unseen change of an earlier leader may be in the log."""
    network = cluster(3)
    network.elect(1)
    network.drop = lambda m: m.type is MessageType.APPEND and m.to == 3
    network.propose(1, b"a")
    network[1].run()
    network.deliver_all(2)
    network.crash(1)
    network.restart(1)
    network.drop = lambda m: m.type is MessageType.APPEND
    network.elect(1)
    with pytest.raises(ProposalDropped) as caught:
        network.change_conf(1, change((LEARN, 4)))
    assert caught.value.reason is DropReason.CONF_PENDING


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (change((REMOVE, 1), (REMOVE, 2), (REMOVE, 3)), "removed all voters"),
        (change(), "non-joint"),
    ],
)
def test_a_change_that_does_not_fit_is_refused_before_it_enters_the_log(cluster, wrong, text):
    network = cluster(3)
    network.elect(1)
    with pytest.raises(ProposalDropped, match=text) as caught:
        network.change_conf(1, wrong)
    assert caught.value.reason is DropReason.CONF_INVALID
    assert network.core(1).last_index == 1


def test_a_leader_that_applied_its_removal_steps_down(cluster):
    network = cluster(3)
    network.elect(1)
    network.change_conf(1, change((REMOVE, 1)))
    network.quiesce()
    assert network.core(1).role is Role.FOLLOWER
    network.run_ticks(60)
    assert network.core(1).role is Role.FOLLOWER
    assert network.core(1).term == 1, "and disrupts no leader"
    assert network.leader() in (2, 3)
    assert network.core(2).conf.voters == (2, 3)


def test_a_demoted_leader_steps_down(cluster):
    network = cluster(3)
    network.elect(1)
    network.change_conf(1, change((LEARN, 1)))
    network.quiesce()
    assert network.core(1).role is Role.FOLLOWER
    network.run_ticks(60)
    assert network.leader() in (2, 3)
    assert network.core(1).leader == network.leader(), "it still listens"


def test_without_step_down_a_removed_leader_goes_on(cluster):
    network = cluster(3, step_down_on_removal=False)
    network.elect(1)
    network.change_conf(1, change((REMOVE, 1)))
    network.quiesce()
    assert network.core(1).role is Role.LEADER
    for choice in (lambda: network.propose(1, b"a"), lambda: network.change_conf(1, change((LEARN, 1)))):
        with pytest.raises(ProposalDropped) as caught:
            choice()
        assert caught.value.reason is DropReason.REMOVED


def test_two_to_one_leaves_a_working_survivor(cluster):
    network = cluster(2)
    network.elect(1)
    network.change_conf(1, change((REMOVE, 2)))
    network.quiesce()
    network.crash(2)
    network.propose(1, b"a")
    network.quiesce()
    assert network.data(1) == [b"a"]


def test_a_joint_change_needs_both_majorities_and_leaves_by_itself(cluster):
    network = cluster(3)
    network.elect(1)
    for member in (4, 5, 6):
        newcomer(network, member)
    network.drop = lambda m: m.to in (4, 5, 6)
    network.change_conf(1, change((ADD, 4), (ADD, 5), (ADD, 6), (REMOVE, 2), (REMOVE, 3)))
    network.quiesce()
    joint = network.core(1).conf
    assert (joint.voters, joint.voters_outgoing, joint.auto_leave) == ((1, 4, 5, 6), (1, 2, 3), True)
    network.propose(1, b"a")
    network.quiesce()
    assert network.data(1) == [], "the old majority alone decides nothing"
    network.drop = lambda m: False
    network.run_ticks(5)
    assert network.data(1) == [b"a"]
    assert network.core(1).conf == ConfState(voters=(1, 4, 5, 6))
    assert network.data(6) == [b"a"]


def test_with_one_majority_the_joint_change_would_not_need_both(cluster, monkeypatch):
    """Negative control of the test before."""
    monkeypatch.setattr(
        "raft.core.tracker.joint_committed",
        lambda incoming, outgoing, acknowledged: majority_committed(outgoing or incoming, acknowledged),
    )
    with pytest.raises(AssertionError):
        test_a_joint_change_needs_both_majorities_and_leaves_by_itself(cluster)


def test_a_campaign_ends_when_its_configuration_is_superseded(cluster):
    """A candidate that learns from a refusal that its own removal is committed must not win after all."""
    network = cluster(3)
    network.elect(1)
    network.change_conf(1, change((REMOVE, 2)))
    network.drop = lambda m: m.to == 2 and not m.entries
    network.quiesce()
    network.propose(1, b"never seen by 2")
    network.drop = lambda m: m.to == 2
    network.quiesce()
    network.drop = lambda m: False
    assert network.core(2).conf.voters == (1, 2, 3)
    network.core(1)._state.election_elapsed = network.core(3)._state.election_elapsed = 10
    network.campaign(2)
    network.quiesce()
    assert network.core(2).conf.voters == (1, 3)
    assert network.core(2).role is Role.FOLLOWER
    assert network.leader() == 1


def test_an_explicit_joint_configuration_waits_to_be_left(cluster):
    network = cluster(3)
    network.elect(1)
    network.change_conf(1, change((LEARN, 3), transition=ConfTransition.JOINT_EXPLICIT))
    network.quiesce()
    network.run_ticks(5)
    assert network.core(2).conf.learners_next == (3,)
    network.change_conf(1, change())
    network.quiesce()
    assert network.core(2).conf == ConfState(voters=(1, 2), learners=(3,))


def test_leaving_is_proposed_again_after_a_transfer_was_in_the_way(cluster):
    network = cluster(3)
    network.elect(1)
    network.drop = lambda m: m.type is MessageType.TIMEOUT_NOW
    network.change_conf(1, change((LEARN, 3), transition=ConfTransition.JOINT_IMPLICIT))
    network[1].do(lambda core: core.transfer_leader(2))
    network.quiesce()
    assert network.core(1).conf.voters_outgoing == (1, 2, 3)
    network.run_ticks(12)  # the transfer is given up
    network.propose(1, b"a")
    network.quiesce()
    assert network.core(1).conf == ConfState(voters=(1, 2), learners=(3,))


def test_a_new_leader_leaves_the_joint_configuration_it_finds(cluster):
    network = cluster(5)
    network.elect(1)
    network.drop = lambda m: any(entry.index > 2 for entry in m.entries)
    network.change_conf(1, change((LEARN, 5), transition=ConfTransition.JOINT_IMPLICIT))
    network.quiesce()
    assert network.core(2).conf.voters_outgoing == (1, 2, 3, 4, 5)
    network.crash(1)
    network.drop = lambda m: False
    network.elect(2)
    network.quiesce()
    assert network.core(2).conf == ConfState(voters=(1, 2, 3, 4), learners=(5,))


def test_a_voter_that_does_not_know_it_is_the_last_learns_it_from_a_refusal(cluster):
    """2 alone votes in the new configuration, but does not know that it committed; 1, which was removed, has
    a longer log and rejects it. Without the commit index in the rejection no member could ever lead again."""
    network = cluster(2)
    network.elect(1)
    network.propose(1, b"a")
    network.quiesce()
    network.change_conf(1, change((REMOVE, 1)))
    network[1].run()
    network.deliver_all(2)
    network[2].run()
    network.drop = lambda m: m.to == 2
    network.propose(1, b"never seen by 2")
    network.quiesce()
    network.drop = lambda m: False
    assert network.core(1).conf.voters == (2,)
    assert network.core(1).last_index > network.core(2).last_index
    assert network.core(2).conf.voters == (1, 2)
    network.run_ticks(60)
    assert network.leader() == 2
    assert network.core(2).conf.voters == (2,)


def test_no_member_campaigns_over_an_unapplied_change(cluster):
    network = cluster(3)
    network.elect(1)
    network.change_conf(1, change((LEARN, 3)))
    for _ in range(2):
        network[1].run()
        network.deliver_all()
        for member in (2, 3):
            if network.core(member).has_ready():
                network[member].take()
            network[member].sync(len(network[member].writing))
        network.deliver_all()
    if network.core(2).has_ready():
        network[2].take()
    assert network.core(2).commit > network.core(2).applied
    network.campaign(2)
    assert network.core(2).role is Role.FOLLOWER
    network.quiesce()
    network.campaign(2)
    assert network.core(2).role is Role.PRE_CANDIDATE


# ---------------------------------------------------------------------- transfer


def test_leadership_moves_to_an_up_to_date_voter_at_once(cluster):
    network = cluster(3)
    network.elect(1)
    network[1].do(lambda core: core.transfer_leader(3))
    network.quiesce()
    assert (network.leader(), network.core(3).term) == (3, 2)


def test_leadership_moves_after_catching_up(cluster):
    network = cluster(3)
    network.elect(1)
    network.partition([1, 2], [3])
    network.propose(1, b"a")
    network.quiesce()
    network.heal()
    network[1].do(lambda core: core.transfer_leader(3))
    with pytest.raises(ProposalDropped) as caught:
        network.propose(1, b"b")
    assert caught.value.reason is DropReason.TRANSFERRING
    network.run_ticks(3)
    assert network.leader() == 3
    assert network.data(3) == [b"a"]


def test_a_follower_passes_the_snapshot_request_on(cluster):
    network = cluster(3)
    network.elect(1)
    network[2].do(lambda core: core.transfer_leader(3))
    network.quiesce()
    assert network.leader() == 3


@pytest.mark.parametrize("target", [1, 4, 9])
def test_a_transfer_to_self_a_learner_or_a_stranger_is_ignored(cluster, target):
    network = cluster(3, learners=(4,))
    network.elect(1)
    network[1].do(lambda core: core.transfer_leader(target))
    assert network.core(1).status().transferee == 0
    assert network.try_propose(1, b"a")


def test_nothing_else_happens_during_a_transfer_and_none_without_a_leader(cluster):
    network = cluster(3)
    network[2].do(lambda core: core.transfer_leader(3))
    assert not network.core(2).has_ready(), "there is no leader to forward it to"
    with pytest.raises(ProposalDropped) as caught:
        network.change_conf(2, change((LEARN, 3)))
    assert caught.value.reason is DropReason.NOT_LEADER
    network.elect(1)
    network[1].do(lambda core: core.transfer_leader(2))
    with pytest.raises(ProposalDropped) as caught:
        network.change_conf(1, change((LEARN, 3)))
    assert caught.value.reason is DropReason.TRANSFERRING


def test_a_transfer_to_a_dead_member_is_given_up(cluster):
    network = cluster(3)
    network.elect(1)
    network.crash(3)
    network[1].do(lambda core: core.transfer_leader(3))
    network.quiesce()
    assert not network.try_propose(1, b"a")
    network.run_ticks(10)
    assert network.try_propose(1, b"a")
    assert network.leader() == 1


def test_a_transfer_to_a_member_removed_meanwhile_is_given_up(cluster):
    network = cluster(3)
    network.elect(1)
    network.drop = lambda m: m.type is MessageType.TIMEOUT_NOW
    network.change_conf(1, change((REMOVE, 3)))
    network[1].do(lambda core: core.transfer_leader(3))
    network.quiesce()
    assert network.core(1).status().transferee == 0


# ---------------------------------------------------------------------- snapshots


def _behind_the_base(network):
    """Member 3 misses entries that 1 has compacted."""
    network.elect(1)
    network.partition([1, 2], [3])
    for data in (b"a", b"b", b"c"):
        network.propose(1, data)
        network.quiesce()
    network[1].compact()
    network.heal()


def test_a_follower_behind_the_base_gets_a_snapshot(cluster):
    network = cluster(3)
    _behind_the_base(network)
    network.run_ticks(3)
    assert network.data(3) == [b"a", b"b", b"c"]
    assert network.core(3).status().compacted == 4
    network.propose(1, b"d")
    network.quiesce()
    assert network.data(3) == [b"a", b"b", b"c", b"d"]


def test_nothing_is_applied_until_the_snapshot_is_durable(cluster):
    network = cluster(3)
    _behind_the_base(network)
    for _ in range(4):
        network.tick(1)
        network[1].run()
        network.deliver_all(3)
        if network.core(3).has_ready():
            ready = network[3].take()
            if ready.append is not None and ready.append.snapshot is not None:
                break
            network[3].sync(len(network[3].writing))
        network.deliver_all(1)
    core = network.core(3)
    assert (core.commit, core.applied, network.data(3)) == (4, 1, [])
    network.campaign(3)
    assert core.role is Role.FOLLOWER, "nor may it stand"
    network[3].sync(len(network[3].writing))
    assert (core.applied, network.data(3)) == (4, [b"a", b"b", b"c"])


def test_a_failed_snapshot_is_asked_for_again(cluster):
    network = cluster(3)
    network.drop = lambda m: m.type is MessageType.SNAPSHOT
    _behind_the_base(network)
    network.run_ticks(3)
    assert network.core(1).status().peers[2].state is ProgressState.SNAPSHOT
    network[1].do(lambda core: core.report_snapshot(3, ok=False))
    assert network.core(1).status().peers[2].state is ProgressState.PROBE
    network.drop = lambda m: False
    network.run_ticks(3)
    assert network.data(3) == [b"a", b"b", b"c"]


def test_a_delivered_snapshot_resumes_replication(cluster):
    network = cluster(3)
    _behind_the_base(network)
    network.drop = lambda m: m.type is MessageType.APPEND_RESPONSE and m.index == 4 and not m.reject
    network.run_ticks(3)
    network.drop = lambda m: False
    assert network.core(1).status().peers[2].state is ProgressState.SNAPSHOT
    network[1].do(lambda core: core.report_snapshot(3, ok=True))
    network.run_ticks(2)
    assert network.core(1).status().peers[2].state is ProgressState.REPLICATE


def test_a_candidate_takes_a_snapshot_from_the_leader_of_its_term(cluster):
    network = cluster(3, pre_vote=False)
    network.campaign(3)
    network[3].run()
    network.bag.clear()
    meta = SnapshotMeta(5, 1, network.core(3).conf)
    network.snapshots[5, 1] = []
    network.deliver(Message(MessageType.SNAPSHOT, 3, 1, 1, snapshot=meta))
    assert (network.core(3).role, network.core(3).leader, network.core(3).commit) == (Role.FOLLOWER, 1, 5)


def test_a_second_snapshot_passes_the_first(cluster):
    """The first one's completion must not count for the second."""
    network = cluster(3)
    for index in (5, 9):
        meta = SnapshotMeta(index, 1, network.core(3).conf)
        network.snapshots[index, 1] = []
        network.deliver(Message(MessageType.SNAPSHOT, 3, 1, 1, snapshot=meta))
        network[3].take()
    network[3].sync()
    core = network.core(3)
    assert (core.applied, core.commit, core.status().stable) == (5, 9, 5)
    network[3].sync()
    assert (core.applied, core.commit, core.status().stable) == (9, 9, 9)


def test_a_change_applied_under_a_snapshot_on_its_way_concerns_the_state_machine_only(cluster):
    """Entries handed out before the snapshot arrived are still being applied, to a state machine that is
    behind it; the active configuration is the snapshot's already."""
    network = cluster(3)
    network.elect(1)
    network.change_conf(1, change((LEARN, 4)))
    while not network[3].applying or network[3].applying[-1].entries[-1].index < 2:
        network[1].run()
        network.deliver_all()
        network[3].take()
        network[3].sync(len(network[3].writing))
        network.tick(1)
    newer = ConfState((1, 2, 3), (4, 5))
    network.snapshots[9, 1] = []
    meta = SnapshotMeta(9, 1, newer)
    network.deliver(Message(MessageType.SNAPSHOT, 3, 1, 1, snapshot=meta))
    core = network.core(3)
    network[3].take()
    assert core.apply_conf(change((LEARN, 4))) == ConfState((1, 2, 3), (4,)), "what the state machine stores"
    assert core.conf == newer
    network[3].applying.clear()
    network[3].sync(len(network[3].writing))
    assert core.conf == newer
    assert core.applied == 9


def test_a_snapshot_older_than_the_own_log_changes_nothing(cluster):
    network = cluster(3)
    kept = []
    network.drop = lambda m: bool(m.type is MessageType.SNAPSHOT and not kept.append(m))
    _behind_the_base(network)
    network.run_ticks(3)
    network.drop = lambda m: False
    network[1].do(lambda core: core.report_snapshot(3, ok=False))
    network.propose(1, b"d")
    network.run_ticks(3)
    before = network.log(3), network.core(3).status().compacted
    network.deliver(kept[0])
    assert (network.log(3), network.core(3).status().compacted) == before
    network.quiesce()


def test_a_snapshot_that_the_log_already_matches_only_moves_the_commit_index(cluster):
    network = cluster(3)
    network.elect(1)
    network.drop = lambda m: m.type in (MessageType.APPEND, MessageType.HEARTBEAT) and not m.entries
    network.propose(1, b"a")
    network.quiesce()
    assert network.core(3).commit == 1
    snapshot = network.core(1)._state.send(MessageType.SNAPSHOT, 3)
    snapshot.snapshot = SnapshotMeta(2, 1, network.core(1).conf)
    network.core(1)._state.messages.clear()
    network.deliver(snapshot)
    assert network.core(3).commit == 2
    assert network.core(3).last_index == 2
    network.quiesce()
    assert network.data(3) == [b"a"]


def test_a_snapshot_without_this_member_is_refused(cluster):
    network = cluster(3)
    _behind_the_base(network)
    network.drop = lambda m: m.type is MessageType.SNAPSHOT
    network.run_ticks(2)
    snapshot = network.core(1)._state.send(MessageType.SNAPSHOT, 3)
    network.core(1)._state.messages.clear()
    snapshot.snapshot = SnapshotMeta(4, 1, ConfState(voters=(1, 2)))
    network.deliver(snapshot)
    assert network.core(3).commit < 4


def test_a_silent_member_is_sent_no_snapshot(cluster):
    network = cluster(3)
    network.elect(1)
    network.partition([1, 2], [3])
    for data in (b"a", b"b", b"c"):
        network.propose(1, data)
        network.quiesce()
    network.run_ticks(25)
    network[1].compact()
    network[1].do(lambda core: core.report_unreachable(3))
    network.propose(1, b"d")
    network[1].run()
    assert network.core(1).status().peers[2].state is ProgressState.PROBE
