"""Membership changes: what they are, how they are written down, and what they make of a configuration.

A change of one voter may be made at once, since any majority before it meets any majority after it.
Anything wider passes through a joint configuration, in which both majorities must agree (paper
section 6). All functions are pure; a change that breaks a rule raises ConfChangeRefused.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

from raft.core.core_errors import ConfChangeRefused
from raft.core.types import NO_NODE, ConfState, EntryKind

FORMAT_VERSION = 1
"""First byte of an encoded change."""

STEPS_MAX = 256
"""Steps in one change; no cluster that elects in a second has more members."""

_HEADER = struct.Struct(">BBH")
_STEP = struct.Struct(">BQ")


class ConfStepKind(IntEnum):
    """One step of a change; the numbers are stored in the log and never reused."""

    ADD_VOTER = 0
    """Add a voter, or promote a learner."""
    REMOVE = 1
    UPDATE = 2
    """Carries `context` to the state machine; changes no configuration."""
    ADD_LEARNER = 3
    """Add a learner, or demote a voter."""


class ConfTransition(IntEnum):
    """How the change passes; the numbers are stored in the log and never reused."""

    AUTO = 0
    """At once if it may, else through a joint configuration that is left by itself."""
    JOINT_IMPLICIT = 1
    """Through a joint configuration that is left by itself."""
    JOINT_EXPLICIT = 2
    """Through a joint configuration that stays until an empty change is proposed."""


class ConfStep(NamedTuple):
    kind: ConfStepKind
    member: int


class ConfChange(NamedTuple):
    """A proposed change. Without steps it leaves a joint configuration."""

    steps: tuple[ConfStep, ...] = ()
    transition: ConfTransition = ConfTransition.AUTO
    context: bytes = b""
    """Opaque to consensus; for the layer above (names, addresses)."""

    @property
    def leaves_joint(self) -> bool:
        return not self.steps and self.transition is ConfTransition.AUTO

    @property
    def enters_joint(self) -> bool:
        return self.transition is not ConfTransition.AUTO or len(self.steps) > 1

    @property
    def entry_kind(self) -> EntryKind:
        simple = len(self.steps) == 1 and not self.enters_joint
        return EntryKind.CONF_CHANGE if simple else EntryKind.CONF_CHANGE_V2

    def encode(self) -> bytes:
        """Bytes for a log entry; raises ConfChangeRefused when there are too many steps."""
        if len(self.steps) > STEPS_MAX:
            raise ConfChangeRefused(f"more than {STEPS_MAX} steps in one change")
        header = _HEADER.pack(FORMAT_VERSION, self.transition, len(self.steps))
        return header + b"".join([_STEP.pack(*step) for step in self.steps]) + self.context

    @classmethod
    def decode(cls, data: bytes) -> ConfChange:
        """The change in a log entry; raises ValueError when the bytes are none of ours."""
        try:
            version, transition, count = _HEADER.unpack_from(data)
            if version != FORMAT_VERSION or count > STEPS_MAX:
                raise ValueError(f"membership change of unknown format {version}")
            end = _HEADER.size + count * _STEP.size
            steps = tuple(
                ConfStep(ConfStepKind(kind), member)
                for kind, member in _STEP.iter_unpack(data[_HEADER.size : end])
            )
        except struct.error as error:
            raise ValueError("truncated membership change") from error
        if len(steps) != count:
            raise ValueError("truncated membership change")
        return cls(steps, ConfTransition(transition), data[end:])


def members_of(conf: ConfState) -> tuple[int, ...]:
    """Everyone the configuration names, sorted."""
    return tuple(sorted(dict.fromkeys(conf.voters + conf.voters_outgoing + conf.learners)))


def is_voter(conf: ConfState, member: int) -> bool:
    """Whether the member votes in either half."""
    return member in conf.voters or member in conf.voters_outgoing


def is_joint(conf: ConfState) -> bool:
    return bool(conf.voters_outgoing)


def apply_change(conf: ConfState, change: ConfChange) -> ConfState:
    """The configuration after `change`."""
    if change.leaves_joint:
        return leave_joint(conf)
    if change.enters_joint:
        auto_leave = change.transition is not ConfTransition.JOINT_EXPLICIT
        return enter_joint(conf, change.steps, auto_leave=auto_leave)
    return simple(conf, change.steps)


def simple(conf: ConfState, steps: Sequence[ConfStep]) -> ConfState:
    """Make the steps at once; at most one voter may come or go."""
    if is_joint(conf):
        raise ConfChangeRefused("can't apply simple config change in joint config")
    changed = _make_steps(conf, steps)
    differing = [voter for voter in conf.voters if voter not in changed.voters]
    differing += [voter for voter in changed.voters if voter not in conf.voters]
    if len(differing) > 1:
        raise ConfChangeRefused("more than one voter changed without entering joint config")
    return changed


def enter_joint(conf: ConfState, steps: Sequence[ConfStep], *, auto_leave: bool) -> ConfState:
    """Make the steps in the incoming half; the present voters become the outgoing half."""
    if is_joint(conf):
        raise ConfChangeRefused("config is already joint")
    if not conf.voters:
        raise ConfChangeRefused("can't make a zero-voter config joint")
    return _make_steps(conf._replace(voters_outgoing=conf.voters), steps)._replace(auto_leave=auto_leave)


def leave_joint(conf: ConfState) -> ConfState:
    """Drop the outgoing half; voters that were to become learners do so now."""
    if not is_joint(conf):
        raise ConfChangeRefused("can't leave a non-joint config")
    return ConfState(voters=conf.voters, learners=_sorted(conf.learners + conf.learners_next))


def check_conf(conf: ConfState) -> None:
    """Assert what holds of every configuration (invariant 21)."""
    for ids in (conf.voters, conf.voters_outgoing, conf.learners, conf.learners_next):
        assert ids == _sorted(ids), f"not sorted or not unique: {ids}"
    voters = dict.fromkeys(conf.voters + conf.voters_outgoing)
    assert not any(learner in voters for learner in conf.learners), f"a learner votes: {conf}"
    assert all(member in conf.voters_outgoing for member in conf.learners_next), f"{conf}"
    assert not any(member in conf.voters for member in conf.learners_next), f"{conf}"
    assert conf.voters_outgoing or not conf.auto_leave, f"leaves a joint configuration it is not in: {conf}"


def _make_steps(conf: ConfState, steps: Sequence[ConfStep]) -> ConfState:
    for kind, member in steps:
        if member == NO_NODE:
            continue  # names no member, changes nothing
        if kind is ConfStepKind.ADD_VOTER:
            conf = _without(conf, member)
            conf = conf._replace(voters=_sorted((*conf.voters, member)))
        elif kind is ConfStepKind.ADD_LEARNER:
            conf = _with_learner(conf, member)
        elif kind is ConfStepKind.REMOVE:
            conf = _without(conf, member)
    if not conf.voters:
        raise ConfChangeRefused("removed all voters")
    check_conf(conf)
    return conf


def _with_learner(conf: ConfState, member: int) -> ConfState:
    conf = _without(conf, member)
    if member in conf.voters_outgoing:
        # Still votes in the outgoing half: a learner only once that half is gone.
        return conf._replace(learners_next=_sorted((*conf.learners_next, member)))
    return conf._replace(learners=_sorted((*conf.learners, member)))


def _without(conf: ConfState, member: int) -> ConfState:
    def others(ids: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(other for other in ids if other != member)

    return conf._replace(
        voters=others(conf.voters), learners=others(conf.learners), learners_next=others(conf.learners_next)
    )


def _sorted(ids: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted(dict.fromkeys(ids)))
