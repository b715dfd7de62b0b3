"""A command loads what it needs, and no more: a list of commands waits neither for gRPC nor for asyncio."""

import os
import subprocess
import sys

import click
import pytest

from kvstore.cli import main

HEAVY = (
    *("aiosqlite", "asyncio", "google.protobuf", "grpc", "logging", "ngh2"),
    *("prometheus_client", "socket", "ssl"),
)
"""What takes long to load. A command that calls a member needs some of it, one that answers alone nothing."""

PROGRAM = """
import sys
from kvstore.__main__ import main
try:
    main()
finally:
    print(*sys.modules, file=sys.stderr)
"""


def loaded_by(*arguments, **variables):
    """The output of a command in a fresh interpreter, and the heavy modules that it loaded."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **variables},
    )
    return done.stdout, [name for name in HEAVY if name in done.stderr.split()]


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--version"], f"{main.PROGRAM} {main.__version__}\n"),
        (["--help"], "Judge recorded histories"),
        (["-h"], "Judge recorded histories"),
        ([], "Judge recorded histories"),
        (["completion", "bash"], "COMP_WORDS"),
        (["server", "--version"], "etcd Version: "),
        (["server", "--help"], "--initial-cluster"),
        (["server", "--print-config"], "election-timeout"),
    ],
)
def test_what_answers_alone_loads_nothing_heavy(arguments, shown):
    output, heavy = loaded_by(*arguments)
    assert shown in output
    assert heavy == []


def test_completing_the_name_of_a_command_loads_nothing_heavy():
    output, heavy = loaded_by(_KVSTORE_COMPLETE="bash_complete", COMP_WORDS="kvstore ve", COMP_CWORD="1")
    assert output.split() == ["plain,verify", "plain,version"]
    assert heavy == []


def test_a_verb_that_calls_a_member_is_seen_to_load_more():
    _, heavy = loaded_by("put", "--help")
    assert {"asyncio", "google.protobuf", "grpc"} <= set(heavy)


@pytest.mark.parametrize("name", main._VERBS)
def test_a_list_of_commands_says_what_each_says_of_itself(name):
    context = click.Context(main.root)
    shown = main.root.get_command(context, name)
    found_name, command, rest = main.root.resolve_command(context, [name, "x"])
    assert (found_name, rest) == (name, ["x"])
    paragraph = command.help.strip().split("\n\n")[0]
    assert shown.help == " ".join(paragraph.split())
    assert shown.get_short_help_str(60) == command.get_short_help_str(60)
    assert not command.hidden
