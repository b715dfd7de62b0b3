"""put, get, del, txn and version."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import click

from kvstore.cli.exit_codes import CommandError, ExitCode, bad_arguments
from kvstore.cli.gotext import format_duration
from kvstore.cli.options import INT, Command, Settings, global_options, settings
from kvstore.cli.printers import Printer, printer
from kvstore.cli.requests import delete_request, put_request, range_request
from kvstore.cli.txn_command import read_transaction
from kvstore.client import DELETE_RANGE, PUT, RANGE, TXN, Connection, EndpointError, parse_endpoints
from kvstore.errors import KVError
from kvstore.version import ETCD_VERSION, __version__
from kvstore.wire import rpc_pb2

Result = TypeVar("Result")


FAILURES = (KVError, CommandError)
"""What ends the work at one endpoint, where others are yet to be asked; `str` gives the text."""


def connect(found: Settings, endpoints: str | None = None) -> Connection:
    """Connections to the endpoints of the settings, or to those given. Raises CommandError."""
    try:
        parsed = parse_endpoints(found.endpoints if endpoints is None else endpoints)
    except EndpointError as error:
        raise CommandError(ExitCode.BAD_CONNECTION, str(error)) from None
    return Connection(
        parsed,
        timeout_s=found.command_timeout_s,
        keepalive_time_s=found.keepalive_time_s,
        keepalive_timeout_s=found.keepalive_timeout_s,
        on_waiting=lambda reasons: _still_waiting(found.command_timeout_s, reasons),
    )


def _still_waiting(after_s: float, reasons: str) -> None:
    """etcdctl waits in silence, which a wrong endpoint looks like as well."""
    after = format_duration(round(after_s * 1e9))
    text = f"Warning: not connected after {after}, still trying"
    click.echo(": ".join(filter(None, (text, reasons))), err=True)


def run(found: Settings, work: Callable[[Connection], Awaitable[Result]]) -> Result:
    """Run `work` with connections; an error of the store ends the command with its text."""

    async def connected() -> Result:
        async with connect(found) as connection:
            return await work(connection)

    try:
        return asyncio.run(connected())
    except KVError as error:
        raise CommandError(ExitCode.ERROR, error.text) from None


def printer_for(found: Settings, what: str, *, values_only: bool = False) -> Printer:
    """The printer asked for; the error for a reply that it cannot show comes before anything is sent."""
    chosen = printer(found.write_out, in_hex=found.hex, values_only=values_only)
    chosen.check(what)
    return chosen


def _options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def apply(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return apply


# The options of put, get and del, shared with the lines of a transaction.
_ARGS = click.argument("args", nargs=-1, metavar="")
_PUT_OPTIONS = _options(
    _ARGS,
    click.option("--lease", default="0", help="Id of the lease to attach, in hexadecimal."),
    click.option("--prev-kv", is_flag=True, help="Return the pair before the change."),
    click.option("--ignore-value", is_flag=True, help="Keep the value the key has."),
    click.option("--ignore-lease", is_flag=True, help="Keep the lease the key has."),
)
_GET_OPTIONS = _options(
    _ARGS,
    click.option("--consistency", default="l", help="Linearizable (l) or serializable (s)."),
    click.option("--order", default="", help="ASCEND or DESCEND."),
    click.option("--sort-by", default="", help="CREATE, KEY, MODIFY, VALUE or VERSION."),
    click.option("--limit", type=INT, default=0, help="Largest number of results."),
    click.option("--prefix", is_flag=True, help="All keys that begin with the key."),
    click.option("--from-key", is_flag=True, help="All keys from the key on."),
    click.option("--rev", type=INT, default=0, help="Read at this revision."),
    click.option("--keys-only", is_flag=True, help="Get the keys only."),
    click.option("--count-only", is_flag=True, help="Get the count only (with -w fields)."),
    click.option("--print-value-only", is_flag=True, help="Print the values only (with -w simple)."),
)
_DEL_OPTIONS = _options(
    _ARGS,
    click.option("--prefix", is_flag=True, help="All keys that begin with the key."),
    click.option("--from-key", is_flag=True, help="All keys from the key on."),
    click.option("--prev-kv", is_flag=True, help="Return the deleted pairs."),
    click.option("--range", "range_", is_flag=True, help="Accepted; a range is deleted either way."),
)


@click.command(cls=Command, options_metavar="[options] <key> <value>")
@_PUT_OPTIONS
@global_options
def put(args: tuple[str, ...], **options: Any) -> None:
    """Put a value under a key.

    Without <value> it is read from standard input. A value that begins with a dash goes behind
    `--`: kvstore put key -- -value.
    """
    found = settings()
    chosen = printer_for(found, "put")
    request = put_request(args, read_value=sys.stdin.buffer.read, **options)
    chosen.put(run(found, lambda connection: connection.call(PUT, request)))


@click.command(cls=Command, options_metavar="[options] <key> [range_end]")
@_GET_OPTIONS
@global_options
def get(args: tuple[str, ...], count_only: bool, print_value_only: bool, **options: Any) -> None:
    """Get a key or a range of keys."""
    found = settings()
    chosen = printer_for(found, "get", values_only=print_value_only)
    request = range_request(args, count_only=count_only, **options)
    if count_only and found.write_out != "fields":
        raise bad_arguments("--count-only is only for `--write-out=fields`")
    if print_value_only and found.write_out != "simple":
        raise bad_arguments("print-value-only is only for `--write-out=simple`")
    chosen.get(run(found, lambda connection: connection.call(RANGE, request)))


@click.command("del", cls=Command, options_metavar="[options] <key> [range_end]")
@_DEL_OPTIONS
@global_options
def delete(args: tuple[str, ...], prefix: bool, from_key: bool, prev_kv: bool, range_: bool) -> None:
    """Delete a key or a range of keys."""
    del range_  # etcdctl 3.6 asks for it, 3.5 does not know it
    found = settings()
    chosen = printer_for(found, "delete")
    request = delete_request(args, prefix=prefix, from_key=from_key, prev_kv=prev_kv)
    chosen.delete(run(found, lambda connection: connection.call(DELETE_RANGE, request)))


@click.command("put", cls=Command)
@_PUT_OPTIONS
def _put_line(args: tuple[str, ...], **options: Any) -> rpc_pb2.RequestOp:
    # standard input holds the transaction itself, so there is no value to read from it
    return rpc_pb2.RequestOp(request_put=put_request(args, read_value=lambda: b"", **options))


@click.command("get", cls=Command)
@_GET_OPTIONS
def _get_line(args: tuple[str, ...], print_value_only: bool, **options: Any) -> rpc_pb2.RequestOp:
    del print_value_only  # etcdctl takes it and prints the keys all the same
    return rpc_pb2.RequestOp(request_range=range_request(args, **options))


@click.command("del", cls=Command)
@_DEL_OPTIONS
def _del_line(args: tuple[str, ...], range_: bool, **options: Any) -> rpc_pb2.RequestOp:
    del range_
    return rpc_pb2.RequestOp(request_delete_range=delete_request(args, **options))


_LINES = {command.name: command for command in (_put_line, _get_line, _del_line)}


def _read_request(verb: str, words: list[str]) -> rpc_pb2.RequestOp:
    command = _LINES.get(verb)
    if command is None:
        raise click.UsageError(f'unknown command "{verb}"')
    request = command.main(args=words, prog_name=verb, standalone_mode=False)
    if not isinstance(request, rpc_pb2.RequestOp):  # `--help` was asked for and printed
        raise click.UsageError("not a request")
    return request


@click.command(cls=Command)
@click.argument("args", nargs=-1, metavar="")
@click.option("-i", "--interactive", is_flag=True, help="Ask for each block.")
@global_options
def txn(args: tuple[str, ...], interactive: bool) -> None:
    """Run a transaction read from standard input.

    Three blocks, each ended by an empty line: compares such as mod("key") > "0" (targets mod, create,
    ver, val, lease; = != < >), requests on success, requests on failure (put, get, del with their
    options).
    """
    if args:
        raise bad_arguments("txn command does not accept argument")
    found = settings()
    chosen = printer_for(found, "txn")

    def prompt(text: str) -> None:
        if interactive:
            click.echo(text)

    request = read_transaction(sys.stdin.buffer, _read_request, prompt)
    chosen.txn(run(found, lambda connection: connection.call(TXN, request)))


@click.command(cls=Command)
@global_options
def version() -> None:
    """Print the version of the command and of the API."""
    click.echo(f"etcdctl version: {ETCD_VERSION}")
    click.echo(f"API version: {ETCD_VERSION.rpartition('.')[0]}")
    click.echo(f"kvstore version: {__version__}")
