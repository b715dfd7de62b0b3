"""aetcd as a client: its connection, its stubs and its messages. Needs an environment that has it."""

from __future__ import annotations

from typing import Any

import aetcd  # type: ignore[import-not-found]  # lives in an environment of its own
from aetcd import rpc

from kvstore.verify.load.client_protocol import CertainFailureError, NotServedError, UnknownOutcomeError
from kvstore.verify.load.etcd_messages import EtcdClient

STUBS = {"KV": "kvstub", "Lease": "leasestub"}
"""etcd's services by aetcd's names for their stubs."""


class AetcdClient(EtcdClient):
    """One aetcd client, connected at first use."""

    def __init__(self, endpoint: str, timeout_s: float) -> None:
        super().__init__(rpc)
        host, _, port = endpoint.rpartition(":")
        self._timeout_s = timeout_s
        self._client = aetcd.Client(host=host, port=int(port), timeout=timeout_s)
        self._is_connected = False

    async def unary(self, service: str, method: str, request: Any, *, changes: bool) -> Any:
        if service not in STUBS:
            raise NotServedError(f"aetcd is not used for {service}")
        if not self._is_connected:
            await self._client.connect()
            self._is_connected = True
        call = getattr(getattr(self._client, STUBS[service]), method)
        try:
            return await call(request, timeout=self._timeout_s)
        except rpc.AioRpcError as error:
            text = f"{error.code().name} {error.details()}"
            never_sent = (error.details() or "").startswith("failed to connect to all addresses")
            certain = error.code() in _REFUSALS or never_sent or not changes
            raise (CertainFailureError(text) if certain else UnknownOutcomeError(text)) from None

    async def close(self) -> None:
        await self._client.close()


_REFUSALS = (
    rpc.StatusCode.INVALID_ARGUMENT,
    rpc.StatusCode.FAILED_PRECONDITION,
    rpc.StatusCode.OUT_OF_RANGE,
    rpc.StatusCode.NOT_FOUND,
)
"""Codes with which a server says that it applied nothing."""
