"""lease grant, revoke, timetolive, list and keep-alive, printed as etcdctl 3.5 prints them."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import Any

import click
from google.protobuf.message import Message

from kvstore.cli.exit_codes import CommandError, ExitCode, bad_arguments, bad_feature
from kvstore.cli.gotext import parse_int, quote
from kvstore.cli.kv_command import run
from kvstore.cli.options import Command, Group, Settings, global_options, settings
from kvstore.cli.printers import json_text, json_value
from kvstore.client import (
    LEASE_GRANT,
    LEASE_LEASES,
    LEASE_REVOKE,
    LEASE_TIME_TO_LIVE,
    Connection,
    keep_alives,
)
from kvstore.errors import LeaseNotFound
from kvstore.wire import rpc_pb2

_ARGS = click.argument("args", nargs=-1, metavar="")


class _Shown:
    """One reply, in the words of each form: etcdctl's own structs, not the messages."""

    def __init__(
        self,
        reply: Message,
        simple: bytes,
        fields: Sequence[tuple[str, object]],
        json_rows: dict[str, Any] | None,
    ) -> None:
        self.reply = reply
        self.simple = simple
        self.fields = fields
        self.json_rows = json_rows
        """Beside the header's own fields; None where etcdctl shows the message itself."""


def _check_form(found: Settings) -> None:
    if found.write_out == "table":
        raise bad_feature("table not supported as output format")


def _show(found: Settings, shown: _Shown) -> None:
    header: rpc_pb2.ResponseHeader = shown.reply.header  # type: ignore[attr-defined]  # all of them have one
    match found.write_out:
        case "json":
            whole = json_value(shown.reply)
            if shown.json_rows is not None:
                whole = json_value(header) | shown.json_rows
            click.echo(json_text(whole))
        case "fields":
            rows = (
                ("ClusterID", header.cluster_id),
                ("MemberID", header.member_id),
                ("Revision", header.revision),
                ("RaftTerm", header.raft_term),
                *shown.fields,
            )
            click.echo("".join(f'"{name}" : {value}\n' for name, value in rows), nl=False)
        case "protobuf" if shown.json_rows is not None:
            click.echo(header.SerializeToString(), nl=False)  # all that etcdctl's struct gives away
        case "protobuf":
            kind = f"clientv3.{type(shown.reply).__name__}"
            text = f"cluster_id:{header.cluster_id} member_id:{header.member_id} revision:{header.revision}"
            raise bad_feature(
                f"marshal unsupported for type {kind} ({{{text} raft_term:{header.raft_term}  {{}} [] 0}})"
            )
        case _:
            click.echo(shown.simple)


def _lease_id(text: str) -> int:
    try:
        return parse_int(text, 16)
    except ValueError as error:
        raise bad_arguments(f"bad lease ID arg ({error}), expecting ID in Hex") from None


def _wrapped(what: str, work: Callable[[], Any]) -> Any:
    """etcdctl says which of its commands failed, for two of them."""
    try:
        return work()
    except CommandError as error:
        raise CommandError(error.code, f"failed to {what} lease ({error.message})") from None


@click.group(cls=Group)
@global_options
@click.pass_context
def lease(ctx: click.Context) -> None:
    """Keys that live as long as their lease is kept alive."""
    ctx.obj = ctx.find_root().obj


@lease.command(cls=Command, options_metavar="<ttl>")
@_ARGS
@global_options
def grant(args: tuple[str, ...]) -> None:
    """Create a lease that expires after <ttl> seconds without a keep-alive."""
    if len(args) != 1:
        raise bad_arguments("lease grant command needs TTL argument")
    try:
        ttl_seconds = parse_int(args[0])
    except ValueError as error:
        raise bad_arguments(f"bad TTL ({error})") from None
    found = settings()
    _check_form(found)
    request = rpc_pb2.LeaseGrantRequest(TTL=ttl_seconds)
    reply = _wrapped("grant", lambda: run(found, lambda connection: connection.call(LEASE_GRANT, request)))
    _show(
        found,
        _Shown(
            reply,
            b"lease %016x granted with TTL(%ds)" % (reply.ID, reply.TTL),
            (("ID", reply.ID), ("TTL", reply.TTL)),
            {"ID": reply.ID, "TTL": reply.TTL, "Error": reply.error},
        ),
    )


@lease.command(cls=Command, options_metavar="<lease id>")
@_ARGS
@global_options
def revoke(args: tuple[str, ...]) -> None:
    """End a lease now, and delete its keys."""
    if len(args) != 1:
        raise bad_arguments("lease revoke command needs 1 argument")
    lease_id = _lease_id(args[0])
    found = settings()
    _check_form(found)
    request = rpc_pb2.LeaseRevokeRequest(ID=lease_id)
    reply = _wrapped("revoke", lambda: run(found, lambda connection: connection.call(LEASE_REVOKE, request)))
    _show(found, _Shown(reply, b"lease %016x revoked" % lease_id, (), None))


@lease.command(cls=Command, options_metavar="<lease id>")
@_ARGS
@click.option("--keys", is_flag=True, help="Show the keys that end with the lease.")
@global_options
def timetolive(args: tuple[str, ...], keys: bool) -> None:
    """Tell how long a lease has left."""
    if len(args) != 1:
        raise bad_arguments("lease timetolive command needs lease ID as argument")
    lease_id = _lease_id(args[0])
    found = settings()
    _check_form(found)
    request = rpc_pb2.LeaseTimeToLiveRequest(ID=lease_id, keys=keys)
    reply = run(found, lambda connection: connection.call(LEASE_TIME_TO_LIVE, request))
    text = b"lease %016x already expired" % lease_id
    if reply.grantedTTL:
        text = b"lease %016x granted with TTL(%ds), remaining(%ds)" % (lease_id, reply.grantedTTL, reply.TTL)
        if keys:
            text += b", attached keys([%b])" % b" ".join(reply.keys)
    _show(
        found,
        _Shown(
            reply,
            text,
            (
                ("ID", reply.ID),
                ("TTL", reply.TTL),
                ("GrantedTTL", reply.grantedTTL),
                *(("Key", quote(key)) for key in reply.keys),
            ),
            {
                "id": reply.ID,
                "ttl": reply.TTL,
                "granted-ttl": reply.grantedTTL,
                "keys": [base64.b64encode(key).decode() for key in reply.keys] or None,
            },
        ),
    )


@lease.command("list", cls=Command)
@_ARGS
@global_options
def list_(args: tuple[str, ...]) -> None:
    """List all leases."""
    del args  # etcdctl takes any and minds none
    found = settings()
    _check_form(found)
    reply = run(found, lambda connection: connection.call(LEASE_LEASES, rpc_pb2.LeaseLeasesRequest()))
    ids = [each.ID for each in reply.leases]
    _show(
        found,
        _Shown(
            reply,
            b"\n".join((b"found %d leases" % len(ids), *(b"%016x" % each for each in ids))),
            [("ID", each) for each in ids],
            {"leases": [{"id": each} for each in ids]},
        ),
    )


@lease.command("keep-alive", cls=Command, options_metavar="<lease id>")
@_ARGS
@click.option("--once", is_flag=True, help="Send one keep-alive and end.")
@global_options
def keep_alive(args: tuple[str, ...], once: bool) -> None:
    """Keep a lease alive until it expires, or send one keep-alive."""
    if len(args) != 1:
        raise bad_arguments("lease keep-alive command needs lease ID as argument")
    lease_id = _lease_id(args[0])
    found = settings()
    _check_form(found)

    async def keep(connection: Connection) -> bool:
        async for reply in keep_alives(connection, lease_id, once=once):
            if reply.TTL <= 0:
                return False
            _show(
                found,
                _Shown(
                    reply,
                    b"lease %016x keepalived with TTL(%d)" % (reply.ID, reply.TTL),
                    (("ID", reply.ID), ("TTL", reply.TTL)),
                    {"ID": reply.ID, "TTL": reply.TTL},
                ),
            )
        return once

    try:
        alive = run(found, keep)
    except CommandError as error:
        raise CommandError(ExitCode.BAD_CONNECTION, error.message) from None
    if not alive and once:
        raise CommandError(ExitCode.BAD_CONNECTION, LeaseNotFound.text)
    if not alive:
        click.echo(f"lease {lease_id:016x} expired or revoked.")
