"""Reading the command line as etcdctl does: global flags anywhere, `--flag=false`, prefixes of commands."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import augment_usage_errors

from kvstore.cli.exit_codes import CommandError, ExitCode, bad_feature
from kvstore.cli.gotext import parse_bool, parse_duration, parse_int, quote
from kvstore.cli.suggestions import did_you_mean

ENVIRONMENT_PREFIX = "ETCDCTL_"
if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]  # generic in its stubs, a plain class in older releases
else:
    _ParamType = click.ParamType

FORMATS = ("simple", "json", "fields", "table", "protobuf")


class GoType(_ParamType):
    """A parameter read by one of Go's parsers, with pflag's error text."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self.parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self.parse(value)
        except ValueError as error:
            flag = param.opts[-1] if param is not None else "?"
            raise CommandError(
                ExitCode.ERROR, f'invalid argument {quote(os.fsencode(value))} for "{flag}" flag: {error}'
            ) from None


INT = GoType("int", lambda text: parse_int(text, 0))
DURATION = GoType("duration", parse_duration)


@dataclass(frozen=True, slots=True)
class _Global:
    name: str
    kind: GoType | type
    default: Any
    help: str
    shown: bool = True
    """False keeps a flag out of the help that only old scripts give."""


_GLOBALS = (
    _Global("endpoints", str, "127.0.0.1:2379", "Addresses of members, separated by commas; adds up."),
    _Global("command-timeout", DURATION, 5.0, "How long a command may take (Go's form, 5s by default)."),
    _Global(
        "dial-timeout", DURATION, 2.0, "Accepted; connecting counts into the command's time.", shown=False
    ),
    _Global(
        "keepalive-time",
        DURATION,
        2.0,
        "Ask a member that is silent for so long whether it lives; at least 10s, as in etcdctl.",
    ),
    _Global("keepalive-timeout", DURATION, None, "How long it may take to answer that."),
    _Global("hex", bool, False, "Print keys and values in hexadecimal."),
    _Global("debug", bool, False, "Show where an internal error happened."),
    _Global("insecure-transport", bool, True, "Connections are not encrypted.", shown=False),
    _Global("insecure-skip-tls-verify", bool, False, "Accepted; there is no TLS.", shown=False),
    _Global("insecure-discovery", bool, True, "Accepted; there is no discovery.", shown=False),
)

# Leaving these out silently would be wrong: who gives them counts on what they do.
_REFUSED = ("cacert", "cert", "key", "user", "password", "discovery-srv", "discovery-srv-name")


@dataclass(slots=True)
class Globals:
    given: dict[str, Any] = field(default_factory=dict)
    """By name of the flag, as found on the command line, wherever it stood."""

    def resolve(self, environ: Mapping[str, str]) -> Settings:
        """Add the `ETCDCTL_*` variables and defaults; CommandError by etcdctl's rules."""
        from kvstore.client.connection import KEEPALIVE_TIME_S, KEEPALIVE_TIMEOUT_S  # loads gRPC

        values = {row.name: row.default for row in _GLOBALS}
        values |= {"write-out": "simple", "keepalive-timeout": KEEPALIVE_TIMEOUT_S}
        known = {ENVIRONMENT_PREFIX + name.upper().replace("-", "_"): name for name in (*values, *_REFUSED)}
        given = dict(self.given)
        for variable, text in sorted(environ.items()):
            name = known.get(variable)
            if name is None or not text:
                continue
            if name in self.given:
                raise CommandError(
                    ExitCode.ERROR,
                    f"conflicting environment variable {variable} is shadowed by corresponding"
                    " command-line flag (either unset environment variable or disable flag)",
                )
            given[name] = self._read(name, variable, text)
        for name in _REFUSED:
            if given.pop(name, None):
                raise bad_feature(f"--{name} is not supported")
        values |= given
        if values["write-out"] not in FORMATS:
            raise bad_feature("unsupported output format")
        return Settings(
            endpoints=values["endpoints"],
            write_out=values["write-out"],
            command_timeout_s=values["command-timeout"],
            keepalive_time_s=max(values["keepalive-time"], KEEPALIVE_TIME_S),
            keepalive_timeout_s=values["keepalive-timeout"],
            hex=values["hex"],
        )

    @staticmethod
    def _read(name: str, variable: str, text: str) -> Any:
        kind = next((row.kind for row in _GLOBALS if row.name == name), str)
        try:
            if kind is bool:
                return parse_bool(text)
            return kind.parse(text) if isinstance(kind, GoType) else text
        except ValueError as error:
            raise CommandError(ExitCode.ERROR, f'invalid value "{text}" for {variable}: {error}') from None


@dataclass(frozen=True, slots=True)
class Settings:
    endpoints: str
    write_out: str
    command_timeout_s: float
    keepalive_time_s: float
    keepalive_timeout_s: float
    hex: bool


def settings() -> Settings:
    found = click.get_current_context().find_root().ensure_object(Globals)
    return found.resolve(os.environ)


def _remember(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    if (
        value is None
        or ctx.get_parameter_source(param.name or "") is not click.core.ParameterSource.COMMANDLINE
    ):
        return
    text = value.removeprefix("=") if isinstance(value, str) else value  # `-w=json`
    ctx.find_root().ensure_object(Globals).given[(param.name or "").replace("_", "-")] = text


def _add(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> None:
    """Keep all values of a flag that is a list, wherever they stood: before the verb, after it, or both."""
    given = ctx.find_root().ensure_object(Globals).given
    before = given.get(param.name)
    if values:
        given[param.name or ""] = ",".join(filter(None, (before, *values)))


_Command = TypeVar("_Command", bound=Callable[..., Any])


def global_options(command: _Command) -> _Command:
    """Let a command take the global flags, as all of etcdctl's do."""
    common: dict[str, Any] = {"expose_value": False, "callback": _remember}
    for name in reversed(_REFUSED):
        command = click.option(f"--{name}", hidden=True, **common)(command)
    for row in reversed(_GLOBALS):
        if row.name == "endpoints":  # the only one that is a list in etcdctl
            command = click.option(
                f"--{row.name}", help=row.help, multiple=True, expose_value=False, callback=_add
            )(command)
        elif row.kind is bool:
            command = click.option(
                f"--{row.name}", is_flag=True, help=row.help, hidden=not row.shown, **common
            )(command)
        else:
            command = click.option(
                f"--{row.name}", type=row.kind, help=row.help, hidden=not row.shown, **common
            )(command)
    return click.option("-w", "--write-out", help=f"Form of the output: {', '.join(FORMATS)}.", **common)(
        command
    )


def _switches(command: click.Command) -> set[str]:
    return {
        name
        for param in command.params
        if isinstance(param, click.Option) and param.is_flag
        for name in param.opts
    }


class Command(click.Command):
    """A command whose switches also take a value (`--prefix=false`), as Go's do."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        with augment_usage_errors(ctx):  # click's parser forgets whose flag needs an argument
            return super().parse_args(ctx, resolve_switches(args, _switches(self)))


def resolve_switches(args: list[str], switches: set[str]) -> list[str]:
    """Rewrite `--switch=true` as `--switch`, and let `--switch=false` undo it."""
    found: list[str] = []
    for position, arg in enumerate(args):
        if arg == "--":
            return found + args[position:]
        name, equals, text = arg.partition("=")
        if not equals or name not in switches:
            found.append(arg)
            continue
        try:
            on = parse_bool(text)
        except ValueError as error:
            raise CommandError(
                ExitCode.ERROR, f'invalid argument {quote(os.fsencode(text))} for "{name}" flag: {error}'
            ) from None
        found = [*found, name] if on else [other for other in found if other != name]
    return found


def unknown_command(name: str, ctx: click.Context) -> CommandError:
    """What cobra says of a command that the group of the context does not have."""
    assert isinstance(ctx.command, click.Group)
    text = f'unknown command "{name}" for "{ctx.command_path}"'
    meant = did_you_mean(name, ctx.command.list_commands(ctx))
    return CommandError(ExitCode.ERROR, f"{text}{meant}\nRun '{ctx.command_path} --help' for usage.")


class Group(click.Group):
    """A group whose commands may be shortened as long as they stay unique."""

    command_class = Command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if (
            not args and not ctx.resilient_parsing
        ):  # etcdctl prints its help and is content; click would be not
            click.echo(ctx.get_help())
            ctx.exit(0)
        with augment_usage_errors(ctx):
            return super().parse_args(ctx, resolve_switches(args, _switches(self)))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        exact = super().get_command(ctx, cmd_name)
        if exact is not None:
            return exact
        matches = [name for name in self.list_commands(ctx) if name.startswith(cmd_name)]
        return self.get_command(ctx, matches[0]) if len(matches) == 1 else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        command = self.get_command(ctx, name)
        if command is None and not ctx.resilient_parsing:
            raise unknown_command(name, ctx)
        return command.name if command else None, command, args[1:]


Group.group_class = Group
