"""Inline syncs are a privilege of fast disks, lost at once and regained slowly."""

from __future__ import annotations

from raft.storage.inline_policy import InlinePolicy

FAST_S = 0.0003
SLOW_S = 0.0009
SPIKE_S = 0.011


def fast_enough(now: float = 1000.0) -> InlinePolicy:
    policy = InlinePolicy()
    for _ in range(32):
        policy.observe(now, FAST_S)
    return policy


def test_nothing_is_allowed_without_evidence() -> None:
    policy = InlinePolicy()
    for _ in range(31):
        policy.observe(0.0, FAST_S)
        assert not policy.allows(0.0, 1)
    policy.observe(0.0, FAST_S)
    assert policy.allows(0.0, 1)


def test_a_batch_of_more_than_four_operations_is_not_allowed() -> None:
    policy = fast_enough()
    assert policy.allows(1000.0, 4)
    assert not policy.allows(1000.0, 5)
    assert policy.allows(1000.0, 4)


def test_the_median_of_the_last_32_decides() -> None:
    policy = fast_enough()
    for _ in range(15):
        policy.observe(1000.0, SLOW_S)
    assert policy.allows(1000.0, 1)
    policy.observe(1000.0, SLOW_S)
    assert not policy.allows(1000.0, 1)
    for _ in range(32):
        policy.observe(1001.0, FAST_S)
    assert not policy.allows(1029.0, 1)
    assert policy.allows(1030.0, 1)


def test_one_spike_costs_30_s_then_60_up_to_10_minutes() -> None:
    policy = fast_enough()
    now = 1000.0
    for penalty in (30.0, 60.0, 120.0, 240.0, 480.0, 600.0, 600.0):
        policy.observe(now, SPIKE_S)
        assert not policy.allows(now + penalty - 0.1, 1)
        now += penalty
        assert policy.allows(now, 1)


def test_a_spike_while_off_restarts_the_30_s_but_does_not_double() -> None:
    policy = fast_enough()
    policy.observe(1000.0, SPIKE_S)
    policy.observe(1020.0, SPIKE_S)
    assert not policy.allows(1049.9, 1)
    assert policy.allows(1050.0, 1)
    policy.observe(1050.0, SPIKE_S)
    assert not policy.allows(1109.9, 1)
    assert policy.allows(1110.0, 1)


def test_ten_good_minutes_forgive() -> None:
    policy = fast_enough()
    policy.observe(1000.0, SPIKE_S)
    policy.observe(1030.0 + 600.0, SPIKE_S)
    assert policy.allows(1660.0, 1)
