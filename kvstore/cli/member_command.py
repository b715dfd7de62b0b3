"""member add, remove, update and promote; move-leader."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import click
from google.protobuf.message import Message

from kvstore.cli.endpoint_command import listed_endpoints, member
from kvstore.cli.exit_codes import CommandError, ExitCode, bad_arguments
from kvstore.cli.gotext import parse_hex_id, quote
from kvstore.cli.kv_command import connect, printer_for, run
from kvstore.cli.options import Command, Settings, global_options, settings
from kvstore.client import (
    MEMBER_ADD,
    MEMBER_PROMOTE,
    MEMBER_REMOVE,
    MEMBER_UPDATE,
    MOVE_LEADER,
    STATUS,
    Method,
)
from kvstore.configuration.config_setting import parse_url
from kvstore.errors import KVError
from kvstore.wire import rpc_pb2

_peer_urls_option = click.option("--peer-urls", default="", help="URLs of the member, separated by commas.")


def _one_id(args: Sequence[str]) -> int:
    if len(args) != 1:
        raise bad_arguments("member ID is not provided")
    try:
        return parse_hex_id(args[0])
    except ValueError as error:
        raise bad_arguments(f"bad member ID arg ({error}), expecting ID in Hex") from None


def _urls(peer_urls: str) -> list[str]:
    if not peer_urls:
        raise bad_arguments("member peer urls not provided")
    urls = peer_urls.split(",")
    for url in urls:
        try:
            parse_url(url)
        except ValueError as error:
            raise CommandError(ExitCode.ERROR, str(error)) from None
    return urls


def _change(found: Settings, method: Method[Any, Any], request: Message) -> Any:
    return run(found, lambda connection: connection.call(method, request))


def _change_one(found: Settings, method: Method[Any, Any], request: Any, done: str) -> None:
    """Change the member that the request names, and print what was `done` to it."""
    chosen = printer_for(found, "change")
    reply = _change(found, method, request)
    chosen.change(reply, f"Member {request.ID:16x} {done} cluster {reply.header.cluster_id:16x}\n")


@member.command("add", cls=Command, options_metavar="<name> --peer-urls=... [options]")
@click.argument("args", nargs=-1, metavar="")
@_peer_urls_option
@click.option("--learner", is_flag=True, help="Let the member learn first; promote it when it is in sync.")
@global_options
def add(args: tuple[str, ...], peer_urls: str, learner: bool) -> None:
    """Let a member in, and print what it is to be started with."""
    if not args:
        raise bad_arguments("member name not provided")
    if len(args) > 1:
        raise bad_arguments("too many arguments")
    found = settings()
    chosen = printer_for(found, "change")
    request = rpc_pb2.MemberAddRequest(peerURLs=_urls(peer_urls), isLearner=learner)
    reply = _change(found, MEMBER_ADD, request)
    added = reply.member.ID
    cluster = f"{reply.header.cluster_id:16x}"
    known = ",".join(
        f"{args[0] if added == one.ID else one.name}={url}" for one in reply.members for url in one.peerURLs
    )
    chosen.change(
        reply,
        f"Member {added:16x} added to cluster {cluster}\n\n"
        f"ETCD_NAME={quote(args[0].encode())}\n"
        f"ETCD_INITIAL_CLUSTER={quote(known.encode())}\n"
        f"ETCD_INITIAL_ADVERTISE_PEER_URLS={quote(peer_urls.encode())}\n"
        'ETCD_INITIAL_CLUSTER_STATE="existing"\n',
    )


@member.command("remove", cls=Command, options_metavar="<id> [options]")
@click.argument("args", nargs=-1, metavar="")
@global_options
def remove(args: tuple[str, ...]) -> None:
    """Remove a member for ever; its id is in hexadecimal."""
    request = rpc_pb2.MemberRemoveRequest(ID=_one_id(args))
    _change_one(settings(), MEMBER_REMOVE, request, "removed from")


@member.command("update", cls=Command, options_metavar="<id> --peer-urls=... [options]")
@click.argument("args", nargs=-1, metavar="")
@_peer_urls_option
@global_options
def update(args: tuple[str, ...], peer_urls: str) -> None:
    """Move a member to other peer URLs."""
    request = rpc_pb2.MemberUpdateRequest(ID=_one_id(args), peerURLs=_urls(peer_urls))
    _change_one(settings(), MEMBER_UPDATE, request, "updated in")


@member.command("promote", cls=Command, options_metavar="<id> [options]")
@click.argument("args", nargs=-1, metavar="")
@global_options
def promote(args: tuple[str, ...]) -> None:
    """Let a learner vote, once it is in sync with the leader."""
    request = rpc_pb2.MemberPromoteRequest(ID=_one_id(args))
    _change_one(settings(), MEMBER_PROMOTE, request, "promoted in")


@click.command("move-leader", cls=Command, options_metavar="<id> [options]")
@click.argument("args", nargs=-1, metavar="")
@global_options
def move_leader(args: tuple[str, ...]) -> None:
    """Hand leadership to another member; the leader must be among the endpoints."""
    if len(args) != 1:
        raise bad_arguments("move-leader command needs 1 argument")
    try:
        target = parse_hex_id(args[0])
    except ValueError as error:
        raise bad_arguments(str(error)) from None
    found = settings()
    chosen = printer_for(found, "change")
    endpoints = listed_endpoints(found, cluster=False)

    async def move() -> tuple[int, rpc_pb2.MoveLeaderResponse]:
        for one in endpoints:
            async with connect(found, one) as connection:
                status = await connection.call(STATUS, rpc_pb2.StatusRequest())
                if status.leader == status.header.member_id:
                    request = rpc_pb2.MoveLeaderRequest(targetID=target)
                    return status.leader, await connection.call(MOVE_LEADER, request)
        raise bad_arguments(f"no leader endpoint given at [{' '.join(endpoints)}]")

    try:
        leader, reply = asyncio.run(move())
    except KVError as error:
        raise CommandError(ExitCode.ERROR, error.text) from None
    chosen.change(reply, f"Leadership transferred from {leader:x} to {target:x}\n")
