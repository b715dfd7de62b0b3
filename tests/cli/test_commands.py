"""The command line itself: what is found, what is refused, and how it ends. No cluster is needed."""

import os
import subprocess
import sys
import tomllib

import pytest

from kvstore.cli import endpoint_command
from kvstore.cli import main as cli_main
from kvstore.errors import Unavailable
from kvstore.version import ETCD_VERSION, __version__


def kvstore(*args, **environment):
    """The command as a process of its own."""
    clean = {name: text for name, text in os.environ.items() if not name.startswith("ETCD")}
    return subprocess.run(
        [sys.executable, "-m", "kvstore", *args],
        capture_output=True,
        text=True,
        check=False,
        env=clean | environment,
        timeout=30,
        stdin=subprocess.DEVNULL,
    )


def test_as_a_process():
    done = kvstore("get")
    assert (done.returncode, done.stdout, done.stderr) == (
        128,
        "",
        "Error: get command needs one argument as key and an optional argument as range_end\n",
    )


def test_the_list_of_commands(ours):
    done = ours([])
    assert done.code == 0
    for name in (
        b"alarm",
        b"cluster",
        b"completion",
        b"del",
        b"endpoint",
        b"get",
        b"member",
        b"server",
        b"txn",
    ):
        assert b"\n  " + name in done.out
    assert ours(["--help"]).out == ours(["-h"]).out == done.out
    assert ours(["endpoint"]).code == 0


def test_versions(ours):
    assert ours(["--version"]).out == f"kvstore {__version__}\n".encode()
    assert ours(["version"]).out.splitlines()[:2] == [
        f"etcdctl version: {ETCD_VERSION}".encode(),
        b"API version: 3.5",
    ]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("nonsense", 'unknown command "nonsense" for "kvstore"'),
        ("ver", 'unknown command "ver" for "kvstore"'),  # verify or version
        ("endpoint nonsense", 'unknown command "nonsense" for "kvstore endpoint"'),
        ("get --nonsense a", "unknown flag: --nonsense"),
        ("get a --limit", "flag needs an argument: --limit"),
        (
            "--keepalive-time=x get a",
            'invalid argument "x" for "--keepalive-time" flag: time: invalid duration "x"',
        ),
    ],
)
def test_what_is_not_known_is_one_error(line, text, ours):
    done = ours(line.split())
    assert (done.code, done.out) == (1, b"")
    assert done.err.decode().splitlines()[0] == f"Error: {text}"


MEANT = "\n\nDid you mean this?\n\t{}\n"


@pytest.mark.parametrize(
    ("line", "text", "path"),
    [
        ("gte a", 'unknown command "gte" for "kvstore"' + MEANT.format("get"), ""),
        ("GTE a", 'unknown command "GTE" for "kvstore"' + MEANT.format("get"), ""),
        ("make-miror", 'unknown command "make-miror" for "kvstore"' + MEANT.format("make-mirror"), ""),
        ("m", 'unknown command "m" for "kvstore"' + MEANT.format("make-mirror\n\tmember\n\tmove-leader"), ""),
        ("xyzzy", 'unknown command "xyzzy" for "kvstore"', ""),
        (
            "endpoint helth",
            'unknown command "helth" for "kvstore endpoint"' + MEANT.format("health"),
            " endpoint",
        ),
        (
            "cluster stats",
            'unknown command "stats" for "kvstore cluster"' + MEANT.format("status"),
            " cluster",
        ),
        ("verify chek", 'unknown command "chek" for "kvstore verify"' + MEANT.format("check"), " verify"),
        ("get --prefx a", "unknown flag: --prefx" + MEANT.format("--prefix"), " get"),
        ("get --nonsense a", "unknown flag: --nonsense", " get"),
        ("--endpointss=a get a", "unknown flag: --endpointss" + MEANT.format("--endpoints"), ""),
        ("get -xyz", "unknown shorthand flag: 'x' in -xyz", " get"),
        ("watch -ix a", "unknown shorthand flag: 'x' in -x", " watch"),
        ("get a -w", "flag needs an argument: 'w' in -w", " get"),
        ("endpoint --endpoints", "flag needs an argument: --endpoints", " endpoint"),
    ],
)
def test_what_may_have_been_meant(line, text, path, ours):
    done = ours(line.split())
    usage = f"Run 'kvstore{path} --help' for usage."
    assert (done.code, done.out, done.err.decode()) == (1, b"", f"Error: {text}\n{usage}\n")


@pytest.mark.parametrize("group", ["", "endpoint", "lease", "cluster", "verify"])
def test_a_group_without_a_command_shows_its_help(group, ours):
    done = ours(group.split())
    assert (done.code, done.err) == (0, b"")
    assert done.out.startswith(b"Usage: kvstore ")


@pytest.mark.parametrize(
    ("line", "endpoints"),
    [
        ("endpoint status --endpoints a:1 --endpoints b:2", "a:1,b:2"),
        ("--endpoints a:1 endpoint --endpoints b:2 status --endpoints c:3,d:4", "a:1,b:2,c:3,d:4"),
        ("--endpoints= endpoint status --endpoints a:1", "a:1"),
        ("endpoint status", "127.0.0.1:2379"),
    ],
)
def test_endpoints_add_up(line, endpoints, ours, monkeypatch):
    asked = []

    def connect(_found, one):
        asked.append(one)
        raise Unavailable

    monkeypatch.setattr(endpoint_command, "connect", connect)
    assert ours(line.split()).code == 1
    assert ",".join(asked) == endpoints


@pytest.mark.parametrize(
    ("line", "code", "text"),
    [
        ("get a --user root:pw", 4, "--user is not supported"),
        ("get a --cacert ca.pem", 4, "--cacert is not supported"),
        ("get a --endpoints=https://h:1", 2, 'endpoint "https://h:1": only http:// is supported'),
        ("get a -w nonsense", 4, "unsupported output format"),
        ("put a b -w table", 4, "table not supported as output format"),
    ],
)
def test_what_does_not_exist_is_refused(line, code, text, ours):
    done = ours(line.split())
    assert (done.code, done.err.decode()) == (code, f"Error: {text}\n")


@pytest.mark.parametrize(
    ("variables", "text"),
    [
        (
            {"ETCDCTL_ENDPOINTS": "h:1"},
            (
                "conflicting environment variable ETCDCTL_ENDPOINTS is shadowed by corresponding"
                " command-line flag (either unset environment variable or disable flag)"
            ),
        ),
        (
            {"ETCDCTL_HEX": "x"},
            'invalid value "x" for ETCDCTL_HEX: strconv.ParseBool: parsing "x": invalid syntax',
        ),
        (
            {"ETCDCTL_DIAL_TIMEOUT": "x"},
            'invalid value "x" for ETCDCTL_DIAL_TIMEOUT: time: invalid duration "x"',
        ),
        ({"ETCDCTL_WRITE_OUT": "x"}, "unsupported output format"),
        ({"ETCDCTL_USER": "root"}, "--user is not supported"),
    ],
)
def test_variables_are_checked_like_flags(variables, text, ours, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    done = ours(["get", "a", "--endpoints", "127.0.0.1:1"])
    assert done.err.decode() == f"Error: {text}\n"
    assert done.code in {1, 4}


def test_an_error_of_ours_is_one_line_too(ours, monkeypatch):
    def broken(*args, **kwargs):
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(cli_main.root, "invoke", broken)
    assert ours(["get", "a"]).err == b"Error: internal error: ZeroDivisionError: oops\n"
    debugged = ours(["get", "a", "--debug"])
    assert b"Traceback" in debugged.err
    assert debugged.code == 1


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell, ours):
    done = ours(["completion", shell])
    assert done.code == 0
    assert b"_KVSTORE_COMPLETE=" in done.out


def test_completion_completes():
    done = kvstore(_KVSTORE_COMPLETE="bash_complete", COMP_WORDS="kvstore endp", COMP_CWORD="1")
    # run as `python -m kvstore`, the program's name is still kvstore
    assert done.stdout.splitlines() == ["plain,endpoint"]


# --- kvstore server, as far as it goes without running one ---


def test_server_version_lines(ours):
    lines = ours(["server", "--version"]).out.decode().splitlines()
    assert lines[0] == f"etcd Version: {ETCD_VERSION}"
    assert [line.partition(":")[0] for line in lines[1:4]] == ["Git SHA", "Go Version", "Go OS/Arch"]


def test_every_server_flag_may_have_one_dash(ours, tmp_path):
    assert ours(["server", "-version"]) == ours(["server", "--version"])
    assert ours(["server", "-help"]).out.startswith(b"Usage: ")
    path = tmp_path / "c.toml"
    path.write_text('name = "of the file"\n')
    done = ours(["server", f"-config-file={path}", "-print-config"])
    assert tomllib.loads(done.out.decode())["name"] == "of the file"


def test_server_prints_its_configuration(ours, monkeypatch):
    monkeypatch.setenv("ETCD_MAX_TXN_OPS", "9")
    done = ours(["server", "-name", "x", "--pre-vote", "--enable-v2=false", "--print-config"])
    assert done.code == 0
    values = tomllib.loads(done.out.decode())
    assert (values["name"], values["max-txn-ops"]) == ("x", 9)
    assert b"# environment ETCD_MAX_TXN_OPS\n" in done.out


@pytest.mark.parametrize(
    ("line", "code", "text"),
    [
        ("--nonsense", 2, "flag provided but not defined: -nonsense"),
        ("--nonsense=1", 2, "flag provided but not defined: -nonsense"),
        ("--name", 2, "flag needs an argument: -name"),
        ("--heartbeat-interval abc", 2, 'invalid value "abc" for flag -heartbeat-interval: parse error'),
        ("--heartbeat-interval 0", 1, "--heartbeat-interval must be >0 (set to 0ms)"),
        ("--cert-file x", 1, "--cert-file is not supported and cannot be ignored. There is no TLS."),
        ("--config-file /nowhere", 1, "cannot read config file /nowhere: No such file or directory"),
        ("--log-outputs /nowhere/log", 1, "cannot log to /nowhere/log: No such file or directory"),
        ("stray", 1, "'stray' is not a valid flag"),
    ],
)
def test_server_refuses_in_one_line(line, code, text, ours):
    done = ours(["server", *line.split()])
    assert (done.code, done.err.decode(), done.out) == (code, f"Error: {text}\n", b"")


def test_server_help_names_every_setting(ours):
    text = ours(["server", "--help"]).out.decode()
    for name in ("--name", "--listen-client-urls", "--print-config", "--config-file", "--snapshot-count"):
        assert name in text
