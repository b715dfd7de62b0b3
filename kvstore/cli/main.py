"""The root of the command line, which alone maps errors to lines and exit codes."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

import click
from click.shell_completion import get_completion_class

from kvstore.cli.exit_codes import CommandError, ExitCode, bad_arguments
from kvstore.cli.options import Command, Globals, Group, global_options
from kvstore.version import __version__

PROGRAM = "kvstore"

# Loaded when used: a put should not wait for the server's modules, nor a server for the client's.
_HOMES = {
    "alarm": "kvstore.cli.endpoint_command:alarm",
    "cluster": "kvstore.devcluster.cluster_command:cluster",
    "compaction": "kvstore.cli.maintenance_command:compaction",
    "defrag": "kvstore.cli.maintenance_command:defrag",
    "del": "kvstore.cli.kv_command:delete",
    "elect": "kvstore.cli.lock_command:elect",
    "endpoint": "kvstore.cli.endpoint_command:endpoint",
    "get": "kvstore.cli.kv_command:get",
    "lease": "kvstore.cli.lease_command:lease",
    "lock": "kvstore.cli.lock_command:lock",
    "make-mirror": "kvstore.cli.make_mirror_command:make_mirror",
    "member": "kvstore.cli.member_command:member",
    "move-leader": "kvstore.cli.member_command:move_leader",
    "put": "kvstore.cli.kv_command:put",
    "server": "kvstore.cli.server_command:server",
    "snapshot": "kvstore.cli.snapshot_command:snapshot",
    "txn": "kvstore.cli.kv_command:txn",
    "verify": "kvstore.verify.verify_command:verify",
    "version": "kvstore.cli.kv_command:version",
    "watch": "kvstore.cli.watch_command:watch",
}


class _Root(Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_HOMES})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        home = _HOMES.get(cmd_name)
        if home is None:
            return super().get_command(ctx, cmd_name)
        module, _, name = home.partition(":")
        command: click.Command = getattr(import_module(module), name)
        return command


@click.group(cls=_Root, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name=PROGRAM, message="%(prog)s %(version)s")
@global_options
@click.pass_context
def root(ctx: click.Context) -> None:
    """A replicated key-value store that speaks the etcd v3 API.

    The verbs take etcdctl's flags, before or after the verb, and ETCDCTL_* variables.
    """
    ctx.ensure_object(Globals)


@root.command(cls=Command)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that completes commands in a shell.

    For example: source <(kvstore completion bash)
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise bad_arguments(f"no completion for {shell}")
    click.echo(kind(root, {}, PROGRAM, f"_{PROGRAM.upper()}_COMPLETE").source())


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command and end the process with its exit code; a person sees lines, never a traceback."""
    arguments = list(sys.argv[1:] if args is None else args)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC's C core writes its own lines otherwise
    try:
        code = run(arguments)
    except BrokenPipeError:  # the reader of the output has seen enough
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = ExitCode.IO
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    try:
        result = root.main(args=list(arguments), prog_name=PROGRAM, standalone_mode=False)
        sys.stdout.flush()
    except CommandError as error:
        error.show()
        return error.code
    except click.NoSuchOption as error:
        return _usage(error, f"unknown flag: {error.option_name}")
    except click.BadOptionUsage as error:
        return _usage(error, f"flag needs an argument: {error.option_name}")
    except click.UsageError as error:
        return _usage(error, error.format_message())
    except click.ClickException as error:
        error.show()
        return ExitCode.ERROR
    except click.Abort:
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        raise
    except OSError as error:
        click.echo(f"Error: {error}", err=True)
        return ExitCode.IO
    except Exception as error:  # noqa: BLE001  the last line of defence: a person gets one line
        if "--debug" in arguments:
            traceback.print_exc()
        click.echo(f"Error: internal error: {type(error).__name__}: {error}", err=True)
        return ExitCode.ERROR
    return result if isinstance(result, int) else ExitCode.OK


def _usage(error: click.UsageError, text: str) -> int:
    click.echo(f"Error: {text}", err=True)
    if error.ctx is not None:
        click.echo(f"Run '{error.ctx.command_path} --help' for usage.", err=True)
    return ExitCode.ERROR
