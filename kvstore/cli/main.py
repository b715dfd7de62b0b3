"""The root of the command line, which alone maps errors to lines and exit codes."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from itertools import takewhile
from typing import NamedTuple, NoReturn

import click
from click.shell_completion import get_completion_class, shell_complete

from kvstore import interrupts
from kvstore.cli import standard_streams
from kvstore.cli.exit_codes import CommandError, ExitCode, bad_arguments
from kvstore.cli.gotext import path_error
from kvstore.cli.options import Command, Globals, Group, global_options, unknown_command
from kvstore.cli.suggestions import did_you_mean
from kvstore.version import __version__

PROGRAM = "kvstore"
_NO_SUCH_COMMAND = re.compile(r"No such command '(?P<name>.*)'\.")
"""click's words, in the groups that are not of this package."""
_COMPLETION = f"_{PROGRAM.upper()}_COMPLETE"
"""The variable by which a shell asks for completions."""


class _Verb(NamedTuple):
    home: str
    """Module and name of the command."""
    help: str
    """The first paragraph of the command's help, for lists of commands."""


# Loaded when used: a put should not wait for the server's modules, nor a server for the client's, and a list
# of commands for neither.
_VERBS = {
    "alarm": _Verb("kvstore.cli.endpoint_command:alarm", "Show and end alarms."),
    "cluster": _Verb(
        "kvstore.devcluster.cluster_command:cluster",
        "Run a local cluster of real processes, and do faults to it.",
    ),
    "compaction": _Verb("kvstore.cli.maintenance_command:compaction", "Forget the history below a revision."),
    "defrag": _Verb("kvstore.cli.maintenance_command:defrag", "Ask each endpoint to defragment its storage."),
    "del": _Verb("kvstore.cli.kv_command:delete", "Delete a key or a range of keys."),
    "elect": _Verb(
        "kvstore.cli.lock_command:elect",
        "Take part in an election: print the key when elected and lead until Ctrl-C, or listen to it.",
    ),
    "endpoint": _Verb("kvstore.cli.endpoint_command:endpoint", "Ask endpoints about themselves."),
    "get": _Verb("kvstore.cli.kv_command:get", "Get a key or a range of keys."),
    "lease": _Verb("kvstore.cli.lease_command:lease", "Keys that live as long as their lease is kept alive."),
    "lock": _Verb(
        "kvstore.cli.lock_command:lock",
        "Hold a lock: print its key and wait for Ctrl-C, or run a command while it is held.",
    ),
    "make-mirror": _Verb(
        "kvstore.cli.make_mirror_command:make_mirror",
        "Copy all keys to the cluster at <destination>, and every change from then on.",
    ),
    "member": _Verb("kvstore.cli.member_command:member", "Show and change the members of the cluster."),
    "move-leader": _Verb(
        "kvstore.cli.member_command:move_leader",
        "Hand leadership to another member; the leader must be among the endpoints.",
    ),
    "put": _Verb("kvstore.cli.kv_command:put", "Put a value under a key."),
    "server": _Verb("kvstore.cli.server_command:server", "Run one member of a cluster."),
    "snapshot": _Verb(
        "kvstore.cli.snapshot_command:snapshot",
        "Back up a member's state, look at a backup, or begin a new cluster with one.",
    ),
    "txn": _Verb("kvstore.cli.kv_command:txn", "Run a transaction read from standard input."),
    "verify": _Verb(
        "kvstore.verify.verify_command:verify", "Judge recorded histories of concurrent operations."
    ),
    "version": _Verb("kvstore.cli.kv_command:version", "Print the version of the command and of the API."),
    "watch": _Verb(
        "kvstore.cli.watch_command:watch", "Print changes of a key or a range of keys as they happen."
    ),
}


_UNDOING = frozenset({"cluster", "snapshot", "verify"})
"""Commands that stop processes or delete files when they are interrupted."""


class _Root(Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_VERBS})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A verb as lists and completions show it. Only `resolve_command` loads the command itself."""
        verb = _VERBS.get(cmd_name)
        return click.Command(cmd_name, help=verb.help) if verb else super().get_command(ctx, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        if name in _UNDOING:
            ctx.with_resource(interrupts.undoing())
        return name, load(name) if name in _VERBS else command, rest


def load(name: str) -> click.Command:
    """The command of a verb, from its module."""
    module, _, attribute = _VERBS[name].home.partition(":")
    command: click.Command = getattr(import_module(module), attribute)
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
    click.echo(kind(root, {}, PROGRAM, _COMPLETION).source())


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command and end the process with its exit code, or by the signal that interrupted it.

    A person sees lines, never a traceback. An output whose reader has gone ends it by SIGPIPE, as etcdctl.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC's C core writes its own lines otherwise
    standard_streams.prepare()
    try:
        code = run(arguments)
    except KeyboardInterrupt as interrupt:
        interrupts.die_of(interrupts.number_of(interrupt))
    except BrokenPipeError:
        interrupts.die_of(signal.SIGPIPE)
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run the command; its exit code. Raises KeyboardInterrupt, and BrokenPipeError of an output."""
    try:
        result = _invoke(arguments)
        sys.stdout.flush()
    except CommandError as error:
        return _fail(error.code, *filter(None, [error.message]))
    except click.UsageError as error:
        return _usage(error, arguments)
    except click.ClickException as error:
        return _fail(ExitCode.ERROR, error.format_message())
    except OSError as error:
        return _io_error(error)
    except Exception as error:  # noqa: BLE001  the last line of defence: a person gets one line
        if "--debug" in arguments:
            import traceback  # rarely needed

            traceback.print_exc()
        return _fail(ExitCode.ERROR, f"internal error: {type(error).__name__}: {error}")
    return result if isinstance(result, int) else ExitCode.OK


def _invoke(arguments: Sequence[str]) -> object:
    """What click's own `main` does, which makes an exit code of an interrupt and of a closed pipe."""
    asked = os.environ.get(_COMPLETION)
    if asked:
        return shell_complete(root, {}, PROGRAM, _COMPLETION, asked)
    try:
        with root.make_context(PROGRAM, list(arguments)) as context:
            return root.invoke(context)
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.UsageError as error:
        if error.ctx is None or error.message != error.ctx.get_help():
            raise
        click.echo(error.message)  # of a group without a command, with which etcdctl is content
        return ExitCode.OK


def _io_error(error: OSError) -> int:
    if not standard_streams.is_output(error):
        return _fail(ExitCode.IO, str(error) if error.errno is None else path_error("", error))
    standard_streams.discard_output(standard_streams.NAMES.index(error.filename))
    if isinstance(error, BrokenPipeError):
        raise error
    return _fail(ExitCode.IO, path_error("write", error))


def _fail(code: int, *lines: str) -> int:
    """Say why; the exit code. It stays the same when nothing can be written."""
    try:
        for number, line in enumerate(lines):
            click.echo(line if number else f"Error: {line}", err=True)
    except BrokenPipeError:
        raise
    except OSError:
        standard_streams.discard_output(2)
    return code


def _usage(error: click.UsageError, arguments: Sequence[str]) -> int:
    """Say in cobra's words what is wrong with the arguments; the exit code."""
    context = error.ctx
    missing = _NO_SUCH_COMMAND.fullmatch(error.message)
    if isinstance(error, click.NoSuchOption):
        text = _unknown_flag(error, arguments)
    elif isinstance(error, click.BadOptionUsage):
        text = f"flag needs an argument: {_shorthand(error.option_name, arguments)}"
    elif context is not None and missing is not None and isinstance(context.command, click.Group):
        return _fail(ExitCode.ERROR, unknown_command(missing["name"], context).message)
    else:
        text = error.format_message()
    lines = [text] if context is None else [text, f"Run '{context.command_path} --help' for usage."]
    return _fail(ExitCode.ERROR, *lines)


def _unknown_flag(error: click.NoSuchOption, arguments: Sequence[str]) -> str:
    if not error.option_name.startswith("--"):
        return f"unknown shorthand flag: {_shorthand(error.option_name, arguments)}"
    shown = [] if error.ctx is None else error.ctx.command.get_params(error.ctx)
    options = [param for param in shown if isinstance(param, click.Option) and not param.hidden]
    names = [name for option in options for name in option.opts if name.startswith("--")]
    return f"unknown flag: {error.option_name}{did_you_mean(error.option_name, names)}"


def _shorthand(name: str, arguments: Sequence[str]) -> str:
    """pflag's name of a flag in an error: `--limit`, but `'x' in -xyz` for a letter."""
    if name.startswith("--"):
        return name
    letter = name.removeprefix("-")
    own = takewhile(lambda words: words != "--", arguments)
    bundles = (words[1:] for words in own if words.startswith("-") and not words.startswith("--"))
    found = next((bundle[bundle.index(letter) :] for bundle in bundles if letter in bundle), letter)
    return f"'{letter}' in -{found}"
