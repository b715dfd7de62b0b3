"""The etcd protocol in terms of its messages, for any generated classes and any transport."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from kvstore.verify.load.client_protocol import MISSING, Held, NotServedError, TxnReply, WatchReply


def prefix_end(prefix: bytes) -> bytes:
    """The first key after all keys with the prefix; the last byte must not be 255."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


def _held(pair: Any) -> Held:
    return Held(pair.value.decode(), pair.mod_revision, pair.version, pair.create_revision)


class EtcdClient:
    def __init__(self, messages: Any) -> None:
        self.messages = messages
        """A module, or an object like one, with the messages of etcd's rpc.proto."""

    async def unary(self, service: str, method: str, request: Any, *, changes: bool) -> Any:
        """Send one request; `changes` says whether it may write. Subclasses implement it."""
        raise NotServedError(f"{service}/{method}")

    async def get(self, key: str, *, serializable: bool = False) -> tuple[int, Held]:
        request = self.messages.RangeRequest(key=key.encode(), serializable=serializable)
        reply = await self.unary("KV", "Range", request, changes=False)
        return reply.header.revision, _held(reply.kvs[0]) if reply.kvs else MISSING

    async def put(self, key: str, value: str, *, lease: int = 0) -> int:
        request = self.messages.PutRequest(key=key.encode(), value=value.encode(), lease=lease)
        reply = await self.unary("KV", "Put", request, changes=True)
        return int(reply.header.revision)

    async def delete(self, key: str) -> tuple[int, int]:
        request = self.messages.DeleteRangeRequest(key=key.encode())
        reply = await self.unary("KV", "DeleteRange", request, changes=True)
        return reply.header.revision, reply.deleted

    async def compare_and_set(self, key: str, expected: str | None, value: str) -> tuple[int, bool]:
        messages = self.messages
        if expected is None:
            compare = messages.Compare(
                result=messages.Compare.EQUAL,
                target=messages.Compare.CREATE,
                key=key.encode(),
                create_revision=0,
            )
        else:
            compare = messages.Compare(
                result=messages.Compare.EQUAL,
                target=messages.Compare.VALUE,
                key=key.encode(),
                value=expected.encode(),
            )
        put = messages.RequestOp(request_put=messages.PutRequest(key=key.encode(), value=value.encode()))
        reply = await self.unary(
            "KV", "Txn", messages.TxnRequest(compare=[compare], success=[put]), changes=True
        )
        return reply.header.revision, reply.succeeded

    async def txn(
        self, unchanged: Sequence[tuple[str, int]], reads: Sequence[str], writes: Sequence[tuple[str, str]]
    ) -> TxnReply:
        messages = self.messages
        compare = [
            messages.Compare(
                result=messages.Compare.EQUAL, target=messages.Compare.MOD, key=key.encode(), mod_revision=mod
            )
            for key, mod in unchanged
        ]
        ranges = [messages.RequestOp(request_range=messages.RangeRequest(key=key.encode())) for key in reads]
        puts = [
            messages.RequestOp(request_put=messages.PutRequest(key=key.encode(), value=value.encode()))
            for key, value in writes
        ]
        request = messages.TxnRequest(compare=compare, success=[*ranges, *puts], failure=ranges)
        reply = await self.unary("KV", "Txn", request, changes=bool(writes))
        answers = [response.response_range.kvs for response in reply.responses[: len(reads)]]
        return TxnReply(
            reply.header.revision,
            reply.succeeded,
            [_held(pairs[0]) if pairs else MISSING for pairs in answers],
        )

    async def list(self, prefix: str, *, serializable: bool = False) -> tuple[int, list[tuple[str, Held]]]:
        key = prefix.encode()
        request = self.messages.RangeRequest(key=key, range_end=prefix_end(key), serializable=serializable)
        reply = await self.unary("KV", "Range", request, changes=False)
        return reply.header.revision, [(pair.key.decode(), _held(pair)) for pair in reply.kvs]

    async def lease_grant(self, ttl_s: int) -> tuple[int, int]:
        request = self.messages.LeaseGrantRequest(TTL=ttl_s)
        reply = await self.unary("Lease", "LeaseGrant", request, changes=True)
        return reply.ID, reply.TTL

    async def lease_revoke(self, lease: int) -> int:
        request = self.messages.LeaseRevokeRequest(ID=lease)
        reply = await self.unary("Lease", "LeaseRevoke", request, changes=True)
        return int(reply.header.revision)

    async def lease_keep_alive(self, lease: int) -> int:
        raise NotServedError("LeaseKeepAlive")

    async def lock(self, name: str, lease: int, timeout_s: float) -> tuple[str, int]:
        raise NotServedError("Lock")

    async def unlock(self, key: str) -> int:
        raise NotServedError("Unlock")

    async def watch(
        self, prefix: str, start: int, *, previous: bool, no_put: bool = False, no_delete: bool = False
    ) -> AsyncIterator[WatchReply]:
        raise NotServedError("Watch")
        yield  # makes it a generator, as the protocol has it

    async def close(self) -> None:
        """Nothing to release here."""
