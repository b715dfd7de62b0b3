"""snapshot save, status and restore."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import click
from crc32c import crc32c

from kvstore.cli.exit_codes import CommandError, ExitCode, bad_arguments
from kvstore.cli.gotext import format_bytes, path_error
from kvstore.cli.kv_command import connect
from kvstore.cli.options import INT, Command, Group, global_options, settings
from kvstore.cli.printers import TablePrinter
from kvstore.client import SNAPSHOT, Connection
from kvstore.errors import KVError
from kvstore.interrupts import run_undoing
from kvstore.wire import rpc_pb2

_REVISION_BUMP = 10**9
"""`kvstore.engine.backend_rewrite.REVISION_BUMP`, whose modules a mere save or status need not load."""


@click.group(cls=Group)
@global_options
def snapshot() -> None:
    """Back up a member's state, look at a backup, or begin a new cluster with one."""


def _one_file(args: tuple[str, ...], verb: str) -> Path:
    if len(args) != 1:
        raise bad_arguments(f"snapshot {verb} requires exactly one argument")
    return Path(args[0])


def _fail(error: Exception, operation: str = "open") -> NoReturn:
    text = path_error(operation, error) if isinstance(error, OSError) else " ".join(str(error).split())
    raise CommandError(ExitCode.ERROR, text) from None


def _find(path: Path) -> None:
    """Refuse a backup that is not there before anything is made of it."""
    try:
        path.stat()
    except OSError as error:
        _fail(error, "stat")


@snapshot.command(cls=Command, options_metavar="<file> [options]")
@click.argument("args", nargs=-1, metavar="")
@global_options
def save(args: tuple[str, ...]) -> None:
    """Save the state of the member at the endpoint to a file."""
    if len(args) != 1:
        raise bad_arguments("snapshot save expects one argument")
    found = settings()
    endpoints = [part for part in found.endpoints.split(",") if part.strip()]
    if len(endpoints) > 1:
        asked = " ".join(endpoints)
        raise bad_arguments(f"snapshot must be requested to one selected node, not multiple [{asked}]")
    path = args[0]
    part = f"{path}.part"
    created = False

    async def fetch() -> None:
        async with connect(found) as connection:
            await _fetch(connection, file, found.command_timeout_s)

    try:
        with _create(part) as file:
            created = True
            run_undoing(fetch())
        _rename(part, path)
    except KVError as error:
        raise CommandError(ExitCode.ERROR, error.text or error.code.name) from None
    except OSError as error:
        error.filename = error.filename or part  # a failed write does not name its file
        _fail(error, "write")
    finally:
        if created and os.path.exists(part):
            os.unlink(part)
    click.echo(f"Snapshot saved at {path}")


async def _fetch(connection: Connection, file: BinaryIO, timeout_s: float) -> None:
    """Connecting must be done in time; how long the rest takes depends on the state."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    pieces = await connection.open(SNAPSHOT, rpc_pb2.SnapshotRequest(), deadline=deadline)
    try:
        while (piece := await pieces.read()) is not None:
            file.write(piece.blob)
    finally:
        pieces.cancel()
    file.flush()
    os.fsync(file.fileno())
    if file.tell() % 512 != 32:
        raise CommandError(ExitCode.ERROR, f"sha256 checksum not found [bytes: {file.tell()}]")


def _create(path: str) -> BinaryIO:
    try:
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")
    except OSError as error:
        raise CommandError(ExitCode.ERROR, f"could not open {path} ({path_error('open', error)})") from None


def _rename(part: str, path: str) -> None:
    try:
        os.replace(part, path)
        _sync(os.path.dirname(path) or ".")
    except OSError as error:
        error.filename = f"{part} {path}"  # as in Go
        text = f"could not rename {part} to {path} ({path_error('rename', error)})"
        raise CommandError(ExitCode.ERROR, text) from None


def _sync(directory: str) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@snapshot.command(cls=Command, options_metavar="<file> [options]")
@click.argument("args", nargs=-1, metavar="")
@global_options
def status(args: tuple[str, ...]) -> None:
    """Verify a backup, and print its hash, revision, number of rows and size."""
    path = _one_file(args, "status")
    found = settings()
    _find(path)
    from kvstore.engine.engine import STATE_ROW, unpack_state
    from raft.storage import StorageError
    from raft.storage.backup import read_backup

    try:
        held = read_backup(str(path), check_digest=None)
    except (OSError, StorageError) as error:
        _fail(error)
    total = 0
    for key, value in sorted(held.rows.items()):
        total = crc32c(value, crc32c(key, total))
    revision = unpack_state(held.rows[STATE_ROW])[0] if STATE_ROW in held.rows else 1
    _show(found.write_out, total, revision, len(held.rows), held.size_bytes)


def _show(form: str, total: int, revision: int, keys: int, size: int) -> None:
    if form == "json":
        shown = {"hash": total, "revision": revision, "totalKey": keys, "totalSize": size}
        click.echo(json.dumps(shown, separators=(",", ":")))
    elif form == "fields":
        click.echo(f'"Hash" : {total}\n"Revision" : {revision}\n"Keys" : {keys}\n"Size" : {size}')
    elif form == "table":
        cells = (f"{total:x}", str(revision), str(keys), format_bytes(size))
        TablePrinter.draw(("HASH", "REVISION", "TOTAL KEYS", "TOTAL SIZE"), [cells])
    elif form == "simple":
        click.echo(f"{total:x}, {revision}, {keys}, {format_bytes(size)}")
    else:
        raise CommandError(ExitCode.BAD_FEATURE, f"{form} not supported as output format")


def _restore_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("--data-dir", default="", help="Directory to make; <name>.etcd unless told otherwise."),
        click.option("--name", default="default", show_default=True, help="Name of this member."),
        click.option("--initial-cluster", default="", help="Members of the new cluster: name=URL,..."),
        click.option("--initial-cluster-token", default="etcd-cluster", show_default=True),
        click.option("--initial-advertise-peer-urls", default="http://localhost:2380", show_default=True),
        click.option("--skip-hash-check", is_flag=True, help="Accept a copied backend file as well."),
        click.option(
            "--bump-revision",
            type=INT,
            default=_REVISION_BUMP,
            show_default=True,
            help="What to add to the revision, so that none is used twice.",
        ),
        click.option(
            "--mark-compacted/--no-mark-compacted",
            default=True,
            help="Whether all history counts as compacted, so that watches begin anew.",
        ),
        click.option("--wal-dir", default="", hidden=True),
    ):
        command = option(command)
    return command


@snapshot.command(cls=Command, options_metavar="<file> [options]")
@click.argument("args", nargs=-1, metavar="")
@_restore_options
@global_options
def restore(args: tuple[str, ...], **options: Any) -> None:
    """Make a member of a new cluster out of a backup, in a directory of its own.

    Every member of the new cluster is restored so, from the same file and with the same cluster; then all
    are started with the flags they were restored with.
    """
    path = _one_file(args, "restore")
    if options["wal_dir"]:
        raise bad_arguments("--wal-dir is not supported: the log lies in the data directory")
    if options["bump_revision"] < 0:
        raise bad_arguments("--bump-revision must not be negative")
    _find(path)
    from kvstore.configuration.config_setting import ConfigError
    from kvstore.configuration.member_config import Config
    from kvstore.engine import BackendError
    from kvstore.server.disaster_recovery import restore as restore_member
    from kvstore.server.initial_cluster import InitialCluster, bootstrap_urls
    from raft.storage import StorageError

    name, urls = options["name"], options["initial_advertise_peer_urls"]
    config = Config(
        name=name,
        data_dir=options["data_dir"],
        initial_cluster=options["initial_cluster"],
        initial_advertise_peer_urls=urls,
    )

    async def make() -> InitialCluster:
        return await restore_member(
            path,
            config.directory,
            name=name,
            initial=await bootstrap_urls(config),
            token=options["initial_cluster_token"],
            check_digest=not options["skip_hash_check"],
            revision_bump=options["bump_revision"],
            mark_compacted=options["mark_compacted"],
        )

    try:
        initial_cluster = asyncio.run(make())
    except ConfigError as error:
        raise CommandError(ExitCode.ERROR, error.text) from None
    except OSError as error:
        # What is there cannot be opened; what is not there, the data directory or one above it, cannot be
        # made.
        is_there = error.filename is not None and os.path.lexists(error.filename)
        _fail(error, "open" if is_there else "mkdir")
    except BackendError as error:
        raise CommandError(ExitCode.ERROR, f"{path}: {error}") from None
    except (StorageError, ValueError) as error:
        _fail(error)
    ids = f"member {initial_cluster.member_id:x} of cluster {initial_cluster.cluster_id:x}"
    click.echo(f"Snapshot {path} restored to {config.directory}: {ids}")
