"""Membership changes, against etcd-io/raft's tables, and their encoding."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.core import ConfChange, ConfChangeRefused, Config, ConfState, ConfStep, ConfStepKind, ConfTransition
from raft.core.confchange import apply_change, enter_joint, leave_joint, simple
from raft.core.tracker import Tracker

FILES = {
    "joint_autoleave.txt": 4,
    "joint_idempotency.txt": 3,
    "joint_learners_next.txt": 3,
    "joint_safety.txt": 15,
    "simple_idempotency.txt": 11,
    "simple_promote_demote.txt": 7,
    "simple_safety.txt": 11,
    "update.txt": 3,
    "zero.txt": 1,
}
"""Each file and the number of its directives, so that a parser that skips some fails."""

KINDS = {
    "v": ConfStepKind.ADD_VOTER,
    "l": ConfStepKind.ADD_LEARNER,
    "r": ConfStepKind.REMOVE,
    "u": ConfStepKind.UPDATE,
}


def _steps(lines):
    return [ConfStep(KINDS[word[0]], int(word[1:])) for line in lines for word in line.split()]


def _ids(members):
    return "(" + " ".join(str(member) for member in members) + ")"


def _draw(tracker):
    conf = tracker.conf
    line = f"voters={_ids(conf.voters)}"
    line += f"&&{_ids(conf.voters_outgoing)}" if conf.voters_outgoing else ""
    line += f" learners={_ids(conf.learners)}" if conf.learners else ""
    line += f" learners_next={_ids(conf.learners_next)}" if conf.learners_next else ""
    line += " autoleave" if conf.auto_leave else ""
    lines = [line]
    for member, progress in tracker.progress.items():
        learner = " learner" if progress.is_learner else ""
        state = f"State{progress.state.value.capitalize()}"
        lines.append(f"{member}: {state} match={progress.match} next={progress.next}{learner}")
    return lines


def _change(conf, block):
    if block.command == "simple":
        return simple(conf, _steps(block.input))
    if block.command == "enter-joint":
        auto_leave = block.args.get("autoleave") == ["true"]
        return enter_joint(conf, _steps(block.input), auto_leave=auto_leave)
    assert block.command == "leave-joint"
    return leave_joint(conf)


@pytest.mark.parametrize("name", FILES)
def test_tables(name, directives):
    blocks = directives(f"raft-confchange/{name}")
    assert len(blocks) == FILES[name]
    tracker = Tracker(Config(member_id=1), ConfState(), 1)
    for number, block in enumerate(blocks):
        try:
            tracker.adopt(_change(tracker.conf, block), max(number, 1))
            drawn = _draw(tracker)
        except ConfChangeRefused as refusal:
            drawn = [str(refusal)]
        assert drawn == block.expected, block


steps = st.lists(
    st.builds(ConfStep, st.sampled_from(ConfStepKind), st.integers(0, 2**64 - 1)), max_size=8
).map(tuple)


@given(st.builds(ConfChange, steps, st.sampled_from(ConfTransition), st.binary(max_size=20)))
def test_encoding_round_trips(change):
    assert ConfChange.decode(change.encode()) == change


@pytest.mark.parametrize("data", [b"", b"\x01\x00", b"\x02\x00\x00\x00", b"\x01\x00\x00\x02" + b"\x00" * 9])
def test_broken_encodings_are_refused(data):
    with pytest.raises(ValueError, match="membership change"):
        ConfChange.decode(data)


few = st.lists(st.builds(ConfStep, st.sampled_from(ConfStepKind), st.integers(1, 5)), max_size=4).map(tuple)


@given(st.lists(st.builds(ConfChange, few, st.sampled_from(ConfTransition)), max_size=12))
def test_any_sequence_keeps_a_configuration_whole_and_majorities_overlapping(changes):
    conf = ConfState(voters=(1, 2, 3))
    for change in changes:
        try:
            after = apply_change(conf, change)
        except ConfChangeRefused:
            continue
        # What one half of the old and the new configuration share decides in both.
        assert after.voters
        if not after.voters_outgoing and not conf.voters_outgoing:
            differing = [
                m for m in (*conf.voters, *after.voters) if (m in conf.voters) != (m in after.voters)
            ]
            assert len(differing) <= 1
        elif after.voters_outgoing and not conf.voters_outgoing:
            assert after.voters_outgoing == conf.voters
        elif conf.voters_outgoing:
            assert after.voters == conf.voters
        conf = after


def test_a_change_has_at_most_so_many_steps():
    change = ConfChange((ConfStep(ConfStepKind.ADD_LEARNER, 1),) * 257)
    with pytest.raises(ConfChangeRefused, match="256"):
        change.encode()


def test_a_change_that_may_be_simple_is_an_entry_of_the_simple_kind():
    one = ConfChange((ConfStep(ConfStepKind.ADD_VOTER, 4),))
    two = ConfChange((*one.steps, ConfStep(ConfStepKind.REMOVE, 1)))
    assert (one.entry_kind, two.entry_kind, ConfChange().entry_kind) == (1, 2, 2)
