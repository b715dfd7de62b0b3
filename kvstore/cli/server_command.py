"""`kvstore server`: the flags of one member, which are etcd's. `member_process` runs it."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from typing import NoReturn

import click

from kvstore.cli.exit_codes import ServerExitCode
from kvstore.configuration.config_loader import CONFIG_FILE, TABLE, Loaded, load
from kvstore.configuration.config_setting import ConfigError, Group, Handling, Kind, Setting
from kvstore.configuration.go_values import parse_bool, quote
from kvstore.version import ETCD_VERSION, __version__


class _ServerCommand(click.Command):
    """A command that reads flags as Go's package does, and groups them in its help."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, _read_flags(args))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for group in Group:
            rows = [
                (f"--{row.name} {row.kind.value}", f"{row.help} [{row.default}]" if row.default else row.help)
                for row in TABLE.values()
                if row.group is group and row.handling is Handling.USED
            ]
            if rows:
                with formatter.section(group.value):
                    formatter.write_dl(rows)
        others = [param.get_help_record(ctx) for param in self.get_params(ctx) if param.name not in _FIELDS]
        with formatter.section("Other"):
            formatter.write_dl([record for record in others if record is not None])
        with formatter.section("Known, without meaning here"):
            names = [f"--{row.name}" for row in TABLE.values() if row.handling is not Handling.USED]
            formatter.write_text(", ".join(names))


_FIELDS = {row.field for row in TABLE.values()}
_ACTIONS = frozenset({"print-config", "version", "help"})
"""Switches of the command itself."""

_SWITCHES = _ACTIONS | {name for name, row in TABLE.items() if row.kind is Kind.SWITCH}
_FLAGS = frozenset({*TABLE, CONFIG_FILE, *_ACTIONS})


def _read_flags(args: Sequence[str]) -> list[str]:
    """The flags as `--name=value`, and actions as `--name`, by the rules of Go's package flag.

    One dash or two; a switch stands alone or has its value behind an equals sign; any other flag takes the
    next argument, whatever that is.
    """
    found, rest = [], list(args)
    while rest and rest[0].startswith("-") and len(rest[0]) > 1:
        arg = rest.pop(0)
        if arg == "--":
            break
        text = arg.removeprefix("-").removeprefix("-")
        if text[0] in "-=":
            _refuse(f"bad flag syntax: {arg}")
        name, equals, value = text.partition("=")
        name = "help" if name == "h" else name
        if name not in _FLAGS:
            _refuse(f"flag provided but not defined: -{name}")
        if name in _SWITCHES:
            value = value if equals else "true"
        elif not equals:
            if not rest:
                _refuse(f"flag needs an argument: -{name}")
            value = rest.pop(0)
        if name not in _ACTIONS:
            found.append(f"--{name}={value}")
        elif _is_wanted(name, value):
            found.append(f"--{name}")
    if rest:
        _refuse(f"'{rest[0]}' is not a valid flag", ServerExitCode.CANNOT_START)
    return found


def _is_wanted(action: str, value: str) -> bool:
    try:
        return parse_bool(value)
    except ValueError:
        _refuse(f"invalid boolean value {quote(value)} for -{action}: parse error")


def _refuse(text: str, code: int = ServerExitCode.USAGE) -> NoReturn:
    click.echo(f"Error: {text}", err=True)
    raise click.exceptions.Exit(code)


def _option(row: Setting) -> click.Option:
    return click.Option([f"--{row.name}", row.field])


@click.command(cls=_ServerCommand, params=[_option(row) for row in TABLE.values()])
@click.option(f"--{CONFIG_FILE}", help="Read the configuration from this file, and from nowhere else.")
@click.option("--print-config", is_flag=True, help="Print each value with its origin, and end.")
@click.option("--version", is_flag=True, help="Print the version, and end.")
def server(config_file: str | None, print_config: bool, version: bool, **texts: str | None) -> int:
    """Run one member of a cluster.

    Every flag is an environment variable too (ETCD_NAME for --name) and a key of the file
    (TOML, or YAML with the extra `yaml`).
    """
    if version:
        click.echo(_version_lines(), nl=False)
        return ServerExitCode.STOPPED
    flags = {name: text for name, row in TABLE.items() if (text := texts[row.field]) is not None}
    if config_file is not None:
        flags[CONFIG_FILE] = config_file
    loaded = _load(flags, os.environ)
    if print_config:
        click.echo(loaded.print(), nl=False)
        return ServerExitCode.STOPPED
    from kvstore.cli.member_process import run  # loads asyncio; --version and --help do without

    return run(loaded)


def _version_lines() -> str:
    """The lines of `etcd --version`, which tools parse, and our own."""
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    return (
        f"etcd Version: {ETCD_VERSION}\n"
        "Git SHA: none\n"
        f"Go Version: none (Python {platform.python_version()})\n"
        f"Go OS/Arch: {platform.system().lower()}/{machine}\n"
        f"kvstore Version: {__version__}\n"
    )


def _load(flags: Mapping[str, str], environ: Mapping[str, str]) -> Loaded:
    try:
        loaded = load(flags, environ)
        loaded.config.validate()
        if loaded.bootstrap_only:
            from raft.storage import RealFiles, holds_member  # rarely needed

            has_data = holds_member(RealFiles(), str(loaded.config.directory))
            loaded.check_bootstrap(has_data=has_data)
    except ConfigError as error:
        _refuse(error.text, ServerExitCode.USAGE if error.usage else ServerExitCode.CANNOT_START)
    return loaded
