"""endpoint, member and alarm."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import click

from kvstore.cli.exit_codes import CommandError, ExitCode
from kvstore.cli.gotext import format_duration
from kvstore.cli.kv_command import FAILURES, connect, printer_for, run
from kvstore.cli.options import INT, Group, Settings, global_options, settings
from kvstore.cli.printers import EndpointHash, EndpointHealth, EndpointStatus
from kvstore.client import ALARM, HASH_KV, MEMBER_LIST, RANGE, STATUS, Connection
from kvstore.errors import Code, KVError
from kvstore.wire import rpc_pb2

_HEALTH_KEY = b"health"
"""The key etcdctl reads to see whether a member serves."""

_ALARM_NAMES = {rpc_pb2.AlarmType.NOSPACE: "NOSPACE ", rpc_pb2.AlarmType.CORRUPT: "CORRUPT "}

_ALL_ALARMS = rpc_pb2.AlarmRequest(action=rpc_pb2.AlarmRequest.GET, alarm=rpc_pb2.AlarmType.NONE)

_cluster_option = click.option("--cluster", is_flag=True, help="Ask all endpoints of the members listed.")


@click.group(cls=Group)
@_cluster_option
@global_options
@click.pass_context
def endpoint(ctx: click.Context, cluster: bool) -> None:
    """Ask endpoints about themselves."""
    ctx.obj = ctx.find_root().obj
    ctx.meta["cluster"] = cluster


def listed_endpoints(found: Settings, *, cluster: bool) -> Sequence[str]:
    """Those of the settings, or those that the members advertise."""
    if not (cluster or click.get_current_context().meta.get("cluster")):
        return [part.strip() for part in found.endpoints.split(",") if part.strip()]
    request = rpc_pb2.MemberListRequest(linearizable=True)
    reply = run(found, lambda connection: connection.call(MEMBER_LIST, request))
    return [url for member in reply.members for url in member.clientURLs]


@endpoint.command()
@_cluster_option
@global_options
def status(cluster: bool) -> None:
    """Print version, size, leader and log position of each endpoint."""
    found = settings()
    chosen = printer_for(found, "statuses")
    endpoints = listed_endpoints(found, cluster=cluster)
    statuses: list[EndpointStatus] = []

    async def ask() -> None:
        for one in endpoints:
            try:
                async with connect(found, one) as connection:
                    reply = await connection.call(STATUS, rpc_pb2.StatusRequest())
            except FAILURES as error:
                click.echo(f"Failed to get the status of endpoint {one} ({error})", err=True)
            else:
                statuses.append(EndpointStatus(one, reply))

    asyncio.run(ask())
    chosen.statuses(statuses)
    if len(statuses) < len(endpoints):
        click.get_current_context().exit(ExitCode.ERROR)


@endpoint.command()
@click.option("--rev", type=INT, default=0, help="Newest revision that counts (0: all).")
@_cluster_option
@global_options
def hashkv(rev: int, cluster: bool) -> None:
    """Print a checksum of the history that each endpoint holds."""
    found = settings()
    chosen = printer_for(found, "hashes")
    endpoints = listed_endpoints(found, cluster=cluster)
    hashes: list[EndpointHash] = []

    async def ask() -> str:
        failure = ""
        for one in endpoints:
            try:
                async with connect(found, one) as connection:
                    reply = await connection.call(HASH_KV, rpc_pb2.HashKVRequest(revision=rev))
            except FAILURES as error:
                failure = str(error)
                click.echo(f"Failed to get the hash of endpoint {one} ({failure})", err=True)
            else:
                hashes.append(EndpointHash(one, reply))
        return failure

    failure = asyncio.run(ask())
    chosen.hashes(hashes)
    if failure:
        raise CommandError(ExitCode.ERROR, failure)


@endpoint.command()
@_cluster_option
@global_options
def health(cluster: bool) -> None:
    """Check that each endpoint answers a linearizable read."""
    found = settings()
    chosen = printer_for(found, "healths")
    endpoints = listed_endpoints(found, cluster=cluster)

    async def ask() -> list[EndpointHealth]:
        checks = [asyncio.ensure_future(_check(found, one)) for one in endpoints]
        return [await check for check in asyncio.as_completed(checks)]

    healths = asyncio.run(ask())
    chosen.healths(healths)
    if not all(one.healthy for one in healths):
        raise CommandError(ExitCode.ERROR, "unhealthy cluster")


async def _check(found: Settings, one: str) -> EndpointHealth:
    begun_ns = time.monotonic_ns()
    try:
        async with connect(found, one) as connection:
            error = await _what_ails(connection)
    except FAILURES as failure:
        error = str(failure)
    took = format_duration(time.monotonic_ns() - begun_ns)
    return EndpointHealth(one, not error, took, error)


async def _what_ails(connection: Connection) -> str:
    """Empty when nothing does. Raises KVError when it does not read."""
    try:
        await connection.call(RANGE, rpc_pb2.RangeRequest(key=_HEALTH_KEY))
    except KVError as failure:
        if failure.code is not Code.PERMISSION_DENIED:  # a member that refuses so has read its users
            raise
    try:
        reply = await connection.call(ALARM, _ALL_ALARMS)
    except KVError:
        return "Unable to fetch the alarm list"
    names = "".join(_ALARM_NAMES.get(alarm.alarm, "UNKNOWN ") for alarm in reply.alarms)
    return f"Active Alarm(s): {names}" if names else ""


@click.group(cls=Group)
@global_options
def member() -> None:
    """Show and change the members of the cluster."""


@member.command("list")
@click.option("--consistency", default="l", help="Linearizable (l) or serializable (s).")
@global_options
def list_members(consistency: str) -> None:
    """List the members."""
    found = settings()
    chosen = printer_for(found, "members")
    request = rpc_pb2.MemberListRequest(linearizable=consistency != "s")
    chosen.members(run(found, lambda connection: connection.call(MEMBER_LIST, request)))


@click.group(cls=Group)
@global_options
def alarm() -> None:
    """Show and end alarms."""


@alarm.command("list")
@global_options
def list_alarms() -> None:
    """List all alarms."""
    found = settings()
    chosen = printer_for(found, "alarms")
    chosen.alarms(run(found, lambda connection: connection.call(ALARM, _ALL_ALARMS)))


@alarm.command()
@global_options
def disarm() -> None:
    """Disarm all alarms; prints those that were."""
    found = settings()
    chosen = printer_for(found, "alarms")
    chosen.alarms(run(found, _disarm_all))


async def _disarm_all(connection: Connection) -> rpc_pb2.AlarmResponse:
    """One by one, as etcdctl does: there is no request for all."""
    disarmed = rpc_pb2.AlarmResponse()
    for one in (await connection.call(ALARM, _ALL_ALARMS)).alarms:
        request = rpc_pb2.AlarmRequest(
            action=rpc_pb2.AlarmRequest.DEACTIVATE, memberID=one.memberID, alarm=one.alarm
        )
        disarmed.alarms.extend((await connection.call(ALARM, request)).alarms)
    return disarmed
