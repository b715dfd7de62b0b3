"""compaction and defrag."""

from __future__ import annotations

import asyncio

import click

from kvstore.cli.endpoint_command import listed_endpoints
from kvstore.cli.exit_codes import CommandError, ExitCode, bad_arguments, bad_feature
from kvstore.cli.gotext import parse_int
from kvstore.cli.kv_command import FAILURES, connect, run
from kvstore.cli.options import Command, global_options, settings
from kvstore.client import COMPACT, DEFRAGMENT
from kvstore.wire import rpc_pb2


@click.command(cls=Command, options_metavar="[options] <revision>")
@click.argument("args", nargs=-1, metavar="")
@click.option("--physical", is_flag=True, help="Wait until the old revisions are really removed.")
@global_options
def compaction(args: tuple[str, ...], physical: bool) -> None:
    """Forget the history below a revision."""
    found = settings()
    if len(args) != 1:
        raise bad_arguments("compaction command needs 1 argument")
    try:
        revision = parse_int(args[0])
    except ValueError as error:
        raise CommandError(ExitCode.ERROR, str(error)) from None
    request = rpc_pb2.CompactionRequest(revision=revision, physical=physical)
    run(found, lambda connection: connection.call(COMPACT, request))
    click.echo(f"compacted revision {revision}")


@click.command(cls=Command)
@click.option("--cluster", is_flag=True, help="Ask all endpoints of the members listed.")
@click.option("--data-dir", default="", hidden=True)
@global_options
def defrag(cluster: bool, data_dir: str) -> None:
    """Ask each endpoint to defragment its storage."""
    if data_dir:
        raise bad_feature("--data-dir is not supported")
    found = settings()
    endpoints = listed_endpoints(found, cluster=cluster)
    failed: list[str] = []

    async def ask() -> None:
        for one in endpoints:
            try:
                async with connect(found, one) as connection:
                    await connection.call(DEFRAGMENT, rpc_pb2.DefragmentRequest())
            except FAILURES as error:
                click.echo(f"Failed to defragment etcd member[{one}] ({error})", err=True)
                failed.append(one)
            else:
                click.echo(f"Finished defragmenting etcd member[{one}]")

    asyncio.run(ask())
    if failed:
        click.get_current_context().exit(ExitCode.ERROR)
