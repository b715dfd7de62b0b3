"""The routes of every member, with etcd's bodies."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from http import HTTPStatus

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from kvstore.http.listener import Request, Response, Route
from kvstore.server.health_check import Health, check_health
from kvstore.server.local_member import LocalMember
from kvstore.version import ETCD_CLUSTER_VERSION, ETCD_VERSION

JSON = "application/json"


def make_routes(member: LocalMember, registry: CollectorRegistry) -> Mapping[str, Route]:
    async def version(_request: Request) -> Response:
        versions = {"etcdserver": ETCD_VERSION, "etcdcluster": ETCD_CLUSTER_VERSION}
        return Response(HTTPStatus.OK, _compact(versions), JSON)

    async def health(request: Request) -> Response:
        verdict: asyncio.Future[Health] = asyncio.get_running_loop().create_future()

        def on_result(health: Health) -> None:
            if not verdict.done():
                verdict.set_result(health)

        check_health(
            member,
            serializable=request.query.get("serializable") == ["true"],
            excluded_alarms=request.query.get("exclude", ()),
            on_result=on_result,
        )
        healthy, reason = await verdict
        status = HTTPStatus.OK if healthy else HTTPStatus.SERVICE_UNAVAILABLE
        return Response(status, _compact({"health": "true" if healthy else "false", "reason": reason}), JSON)

    async def metrics(_request: Request) -> Response:
        return Response(HTTPStatus.OK, generate_latest(registry), CONTENT_TYPE_LATEST)

    return {"/version": version, "/health": health, "/metrics": metrics}


def _compact(value: Mapping[str, str]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
