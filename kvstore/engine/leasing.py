"""Lease commands on the store: what each of them changes."""

from __future__ import annotations

from kvstore.engine.lease_commands import LeaseCheckpoint, LeaseCommand, LeaseExpire, LeaseGrant, LeaseRevoke
from kvstore.engine.results import LeaseGrantResult, LeaseResult
from kvstore.engine.store import Store


def run_lease_command(
    store: Store, command: LeaseCommand, index: int, term: int
) -> LeaseGrantResult | LeaseResult:
    """Apply one; `index` and `term` are those of its log entry. Raises LeaseNotFound, LeaseExists,
    having changed nothing. Does not commit."""
    leases = store.leases
    if isinstance(command, LeaseGrant):
        leases.grant(command.id, command.ttl_seconds, index)
        return LeaseGrantResult(store.revision, command.id, command.ttl_seconds)
    if isinstance(command, LeaseRevoke):
        _end(store, command.id)
        return LeaseResult(store.visible_revision, True)
    # From here on a lessor's: in an entry of another term it is late, whichever member forwarded it.
    acted = False
    if isinstance(command, LeaseExpire):
        if command.term == term and leases.is_from(command.id, command.granted_at):
            _end(store, command.id)
            leases.expired += 1
            acted = True
    elif isinstance(command, LeaseCheckpoint) and command.term == term:
        for each in command.checkpoints:
            if leases.is_from(each.id, each.granted_at):
                leases.checkpoint(each.id, each.remaining_seconds)
                acted = True
    return LeaseResult(store.visible_revision, acted)


def _end(store: Store, lease_id: int) -> None:
    """Delete the keys of a lease in key order, all in the revision being made."""
    for key in store.leases.end(lease_id):
        store.delete_range(key, b"")
