"""Leases in the engine: texts, attaching and detaching, late commands, and a naive model of it all."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kvstore.engine import (
    OPEN_END,
    Alarm,
    AlarmAction,
    AlarmType,
    Checkpoint,
    DeleteRange,
    Engine,
    LeaseCheckpoint,
    LeaseExpire,
    LeaseGrant,
    LeaseGrantResult,
    LeaseResult,
    LeaseRevoke,
    Put,
    Range,
    Txn,
    encode,
    is_deletion,
)
from kvstore.errors import Corrupt, KeyNotFound, KVError, LeaseExists, LeaseNotFound, NoSpace


def keys_of(shell, lease: int) -> list[bytes]:
    return shell.engine.leases.keys_of(lease)


def test_the_errors_are_etcds() -> None:
    assert (LeaseNotFound.code, LeaseNotFound.text) == (5, "etcdserver: requested lease not found")
    assert (LeaseExists.code, LeaseExists.text) == (9, "etcdserver: lease already exists")


def test_a_grant_makes_no_revision_and_is_made_once(shell) -> None:
    assert shell.run(LeaseGrant(7, 60)) == LeaseGrantResult(1, 7, 60)
    with pytest.raises(LeaseExists):
        shell.run(LeaseGrant(7, 60))
    with pytest.raises(LeaseNotFound):
        shell.run(LeaseGrant(0, 60))
    assert shell.engine.leases.ids() == [7]


def test_a_revocation_deletes_the_keys_in_order_in_one_revision(shell) -> None:
    shell.run(LeaseGrant(7, 60))
    for key in (b"c", b"a", b"b"):
        shell.put(key, lease=7)
    shell.engine.observing = True
    assert shell.run(LeaseRevoke(7)) == LeaseResult(5, True)
    (changes,) = shell.engine.take_changes()
    assert changes.revision == 5
    assert [(is_deletion(change), change[0]) for change in changes.changes] == [
        (True, b"a"),
        (True, b"b"),
        (True, b"c"),
    ]
    with pytest.raises(LeaseNotFound):
        shell.run(LeaseRevoke(7))
    with pytest.raises(LeaseNotFound):
        shell.put(b"a", lease=7)


def test_a_lease_without_keys_ends_without_a_revision(shell) -> None:
    shell.run(LeaseGrant(7, 60))
    assert shell.run(LeaseRevoke(7)) == LeaseResult(1, True)


def test_a_put_moves_a_key_between_leases(shell) -> None:
    shell.run(LeaseGrant(7, 60))
    shell.run(LeaseGrant(8, 60))
    shell.put(b"a", lease=7)
    shell.put(b"b", lease=7)
    shell.put(b"a", lease=8)
    assert (keys_of(shell, 7), keys_of(shell, 8)) == ([b"b"], [b"a"])
    shell.put(b"b", b"kept", ignore_lease=True)
    assert keys_of(shell, 7) == [b"b"]
    shell.put(b"b")
    assert keys_of(shell, 7) == []
    shell.delete(b"a")
    assert keys_of(shell, 8) == []
    shell.run(LeaseRevoke(7))
    assert shell.keys() == [b"b"]


def test_an_unknown_lease_spoils_a_whole_transaction(shell) -> None:
    shell.run(LeaseGrant(7, 60))
    with pytest.raises(LeaseNotFound):
        shell.txn(success=[Put(b"a", lease=7), Put(b"b", lease=8)])
    assert (shell.keys(), keys_of(shell, 7)) == ([], [])
    shell.txn(success=[Put(b"a", lease=7)])
    assert keys_of(shell, 7) == [b"a"]


def test_an_expiry_in_another_term_or_of_an_earlier_grant_does_nothing() -> None:
    engine = Engine()

    def apply(index, term, command):
        (outcome,) = engine.apply(index, term, [encode(command)], True)
        return outcome

    apply(10, 3, LeaseGrant(7, 60))
    apply(11, 3, Put(b"a", lease=7))
    assert apply(12, 4, LeaseExpire(3, 7, 10)) == LeaseResult(2, False)
    apply(13, 4, LeaseRevoke(7))
    apply(14, 4, LeaseGrant(7, 60))
    assert apply(15, 4, LeaseExpire(4, 7, 10)) == LeaseResult(3, False)
    assert apply(16, 4, LeaseExpire(4, 9, 10)) == LeaseResult(3, False)
    assert engine.leases.ids() == [7]
    assert apply(17, 4, LeaseExpire(4, 7, 14)) == LeaseResult(3, True)
    assert engine.leases.ids() == []


def test_a_checkpoint_is_kept_with_the_lease_and_obeys_the_same_rules(shell) -> None:
    shell.run(LeaseGrant(7, 60))
    shell.run(LeaseCheckpoint(2, (Checkpoint(7, 1, 30),)))
    shell.run(LeaseCheckpoint(1, (Checkpoint(7, 2, 30), Checkpoint(8, 1, 5))))
    assert shell.engine.leases.find(7).remaining_seconds == 0
    shell.run(LeaseCheckpoint(1, (Checkpoint(7, 1, 30),)))
    shell.reload()
    assert shell.engine.leases.find(7) == (7, 1, 60, 30)


def test_alarms_refuse_grants_but_space_still_lets_go(shell) -> None:
    shell.run(LeaseGrant(7, 60))
    shell.put(b"a", lease=7)
    shell.run(Alarm(AlarmAction.ACTIVATE, 1, AlarmType.NOSPACE))
    with pytest.raises(NoSpace):
        shell.run(LeaseGrant(8, 60))
    shell.run(LeaseRevoke(7))
    shell.run(Alarm(AlarmAction.DEACTIVATE, 1, AlarmType.NOSPACE))
    shell.run(Alarm(AlarmAction.ACTIVATE, 1, AlarmType.CORRUPT))
    with pytest.raises(Corrupt):
        shell.run(LeaseGrant(7, 60))


def test_leases_count_in_the_quota(shell) -> None:
    before = shell.engine.logical_bytes
    shell.run(LeaseGrant(7, 60))
    assert shell.engine.logical_bytes > before
    shell.run(LeaseRevoke(7))
    assert shell.engine.logical_bytes == before


IDS = st.integers(1, 3)
KEYS = st.sampled_from([b"a", b"b", b"c", b"d"])
PUTS = st.builds(
    lambda key, lease, keep: Put(key, lease=0 if keep else lease, ignore_lease=keep),
    KEYS,
    st.integers(0, 3),
    st.sampled_from([False, False, True]),
)


class LeaseMachine(RuleBasedStateMachine):
    """Model: a dict of leases and a dict from key to lease. Nothing else is remembered."""

    @initialize()
    def begin(self) -> None:
        self.engine = Engine()
        self.backend: dict[bytes, bytes] = {}
        self.leases: dict[int, tuple[int, int]] = {}
        """Id to (index of the grant, remaining)."""
        self.keys: dict[bytes, int] = {}
        self.revision = 1
        self.index = 0
        self.term = 5

    def apply(self, command):
        self.index += 1
        (outcome,) = self.engine.apply(self.index, self.term, [encode(command)], True)
        return outcome

    def expect(self, command, refusal, changes: bool = False):
        """`refusal`: the expected error, or None."""
        outcome = self.apply(command)
        if refusal is not None:
            assert type(outcome) is refusal
            return
        assert not isinstance(outcome, KVError)
        self.revision += changes
        assert outcome.revision == self.revision

    def drop(self, lease: int) -> bool:
        """Whether keys went with it."""
        del self.leases[lease]
        gone = [key for key, of in self.keys.items() if of == lease]
        for key in gone:
            del self.keys[key]
        return bool(gone)

    @rule(lease=IDS)
    def grant(self, lease) -> None:
        known = lease in self.leases
        self.expect(LeaseGrant(lease, 60), LeaseExists if known else None)
        if not known:
            self.leases[lease] = (self.index, 0)

    @rule(lease=IDS)
    def revoke(self, lease) -> None:
        if lease in self.leases:
            self.expect(LeaseRevoke(lease), None, self.drop(lease))
        else:
            self.expect(LeaseRevoke(lease), LeaseNotFound)

    @rule(lease=IDS, late_term=st.booleans(), older=st.booleans())
    def expire(self, lease, late_term, older) -> None:
        granted_at, _ = self.leases.get(lease, (1, 0))
        due = lease in self.leases and not late_term and not older
        command = LeaseExpire(self.term - late_term, lease, granted_at - older)
        self.expect(command, None, due and self.drop(lease))

    @rule(lease=IDS, remaining=st.integers(0, 60))
    def checkpoint(self, lease, remaining) -> None:
        granted_at, _ = self.leases.get(lease, (1, 0))
        self.expect(LeaseCheckpoint(self.term, (Checkpoint(lease, granted_at, remaining),)), None)
        if lease in self.leases:
            self.leases[lease] = (granted_at, remaining)

    @rule(put=PUTS)
    def put(self, put) -> None:
        refusal = None
        if put.lease and put.lease not in self.leases:
            refusal = LeaseNotFound
        elif put.ignore_lease and put.key not in self.keys:
            refusal = KeyNotFound
        self.expect(put, refusal, True)
        if refusal is None and not put.ignore_lease:
            self.keys[put.key] = put.lease

    @rule(puts=st.lists(PUTS, min_size=1, max_size=3, unique_by=lambda put: put.key))
    def txn(self, puts) -> None:
        puts = [put for put in puts if not put.ignore_lease]
        if not puts:
            return
        missing = any(put.lease and put.lease not in self.leases for put in puts)
        self.expect(Txn((), tuple(puts), ()), LeaseNotFound if missing else None, True)
        if not missing:
            self.keys.update({put.key: put.lease for put in puts})

    @rule(low=KEYS, end=st.sampled_from([b"", b"c", OPEN_END]))
    def delete(self, low, end) -> None:
        gone = [
            key for key in self.keys if key == low or (end and key >= low and (end == OPEN_END or key < end))
        ]
        if end and end != OPEN_END and low >= end:
            gone = []
        for key in gone:
            del self.keys[key]
        self.expect(DeleteRange(low, end), None, bool(gone))

    @rule()
    def new_term(self) -> None:
        self.term += 1

    @rule()
    def reload(self) -> None:
        for row, value in self.engine.drain_changes():
            if value is None:
                self.backend.pop(row, None)
            else:
                self.backend[row] = value
        self.engine = Engine()
        self.engine.load(sorted(self.backend.items()))
        self.engine.load_done()

    @invariant()
    def agrees(self) -> None:
        table = self.engine.leases
        assert sorted(table.ids()) == sorted(self.leases)
        for lease in range(1, 4):
            found = table.find(lease)
            assert (found and (found.granted_at, found.remaining_seconds)) == self.leases.get(lease)
            assert table.keys_of(lease) == sorted(key for key, of in self.keys.items() if of == lease)
        pairs = self.engine.range(Range(b"\0", OPEN_END)).kvs
        assert {pair.key: pair.lease for pair in pairs} == self.keys


TestLeaseMachine = LeaseMachine.TestCase
TestLeaseMachine.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
