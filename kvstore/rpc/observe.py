"""One stream that observes an election."""

from __future__ import annotations

from kvstore.engine import Event, KeyValue
from kvstore.errors import KVError, NoLeader
from kvstore.rpc import convert
from kvstore.rpc.call import HAS_LEADER_KEY, Call
from kvstore.rpc.headers import Headers
from kvstore.server.local_member import LocalMember
from kvstore.server.lock_queue import end_of, first_of, prefix_of
from kvstore.server.watch_hub import Subscription
from kvstore.wire import v3election_pb2 as pb


class Observer:
    """Sends the leader's key, each of its puts, then its successor's.

    To a caller that reads slowly only the newest is sent when it has room again.
    """

    def __init__(self, member: LocalMember, headers: Headers, name: bytes, call: Call) -> None:
        self._member = member
        self._headers = headers
        self._prefix = prefix_of(name)
        self._call = call
        self._leader: bytes | None = None
        """Key of the leader last seen; None while there is none."""
        self._seen_revision = 0
        """What happened up to here is sent, or overtaken."""
        self._unsent: tuple[int, KeyValue] | None = None
        """Newest news that found no room, with its header's revision."""
        self._subscription: Subscription | None = None
        if call.metadata(HAS_LEADER_KEY) == "true":
            member.leader_loss.add(self._leader_lost)

    def begin(self, error: KVError | None) -> None:
        """This member has proved that its state is the newest: tell it, then what follows."""
        if self._call.gone:
            return
        if error is not None:
            self._call.fail(error)
            return
        self._look()
        self._subscribe()

    def cancel(self) -> None:
        """The caller left. Idempotent."""
        self._member.leader_loss.remove(self._leader_lost)
        self._unsubscribe()

    def drained(self) -> None:
        """The caller has room again."""
        if self._unsent is not None:
            unsent, self._unsent = self._unsent, None
            self._tell(*unsent)

    def _leader_lost(self) -> None:
        self._call.fail(NoLeader())

    def _unsubscribe(self) -> None:
        if self._subscription is not None:
            self._subscription.cancel()
            self._subscription = None

    def _subscribe(self) -> None:
        self._unsubscribe()
        self._subscription = self._member.watches.subscribe(
            self._prefix, end_of(self._prefix), 0, self._changed, self._lost
        )

    def _lost(self, _compact_revision: int) -> None:
        """What lies between is compacted; who leads now is what counts."""
        self._look()
        self._subscribe()

    def _look(self) -> None:
        """Read who leads now."""
        result = self._member.engine.range(first_of(self._prefix))
        self._seen_revision = result.revision
        self._leader = result.kvs[0].key if result.kvs else None
        if result.kvs:
            self._tell(result.revision, result.kvs[0])

    def _changed(self, revision: int, events: list[Event]) -> None:
        for event in events:
            if revision <= self._seen_revision:
                return
            if self._leader is None and not event.is_delete:
                self._leader = event.kv.key
            if event.kv.key != self._leader:
                continue
            if event.is_delete:
                self._look()
            else:
                self._tell(revision, event.kv)

    def _tell(self, revision: int, leader: KeyValue) -> None:
        if not self._call.has_room:
            self._unsent = (revision, leader)
            return
        self._unsent = None
        header = self._headers.at(revision)
        self._call.send(pb.LeaderResponse(header=header, kv=convert.key_value(leader)))
