"""Every kind of value of a server's flag is read as etcd reads it; the table was made with etcd 3.5.1, and is
compared with a real one where that is at hand."""

import json
import os
import socket
import subprocess

import pytest

from kvstore.cli.server_command import _read_flags
from kvstore.configuration.config_loader import TABLE, load
from kvstore.configuration.config_setting import ConfigError, parse_url
from kvstore.configuration.go_values import parse_duration

COUNT, INTEGER, SWITCH = "max-txn-ops", "quota-backend-bytes", "strict-reconfig-check"
DURATION, RETENTION = "experimental-watch-progress-notify-interval", "auto-compaction-retention"
ADVERTISED, LISTENED = "advertise-client-urls", "listen-metrics-urls"

NUMBERS = {
    "7": 7,
    "0x10": 16,
    "0X1_f": 31,
    "0b101": 5,
    "0B1": 1,
    "0o17": 15,
    "010": 8,
    "0_10": 8,
    "1_000_000_000": 10**9,
    "0x20000000": 0x20000000,
    "0x_10": 16,
}
SIGNED = {"-1": -1, "+5": 5, "-0x10": -16, "-1_000": -1000, "0x7fffffffffffffff": 2**63 - 1, "0": 0}
NO_NUMBERS = ("", " 5", "5 ", "08", "0b2", "0x", "1_", "_1", "1__0", "1e3", "1.5", "٣", "--1", "0x10_")
SWITCHES = dict.fromkeys(("1", "t", "T", "true", "TRUE", "True"), True) | dict.fromkeys(
    ("0", "f", "F", "false", "FALSE", "False"), False
)
NO_SWITCHES = ("", "yes", "on", "tRUE", " true", "2")
DURATIONS = {
    "0": 0,
    "-0": 0,
    "1s": 10**9,
    "1.5s": 1_500_000_000,
    ".5s": 500_000_000,
    "1.s": 10**9,
    "-1s": -(10**9),
    "+1s": 10**9,
    "1h2m3s": 3_723 * 10**9,
    "1s1s": 2 * 10**9,
    "1us": 1000,
    "1µs": 1000,
    "1μs": 1000,
    "9223372036854775807ns": 2**63 - 1,
    "1.0000000000000000000000001s": 10**9,
}
NO_DURATIONS = (
    "",
    "1",
    "1d",
    "1S",
    " 1s",
    "1_0s",
    "0x1s",
    "1e3s",
    ".s",
    "٣s",
    "1s-1s",
    "9999999h",
    "2562048h",
)
RETENTIONS = {"": 0, "0": 0, "+5": 5 * 3600, "010": 10 * 3600, "5m": 300, "1.5s": 1.5}
NO_RETENTIONS = {
    "-1": 'time: missing unit in duration "-1"',
    "0x10": 'time: unknown unit "x" in duration "0x10"',
    "1_0": 'time: unknown unit "_" in duration "1_0"',
    "1d": 'time: unknown unit "d" in duration "1d"',
    "x": 'time: invalid duration "x"',
}
URLS = {
    "HTTP://127.0.0.1:1": "http://127.0.0.1:1",
    "http://127.0.0.1:1, http://127.0.0.1:2 ": "http://127.0.0.1:1,http://127.0.0.1:2",
    "http://127.0.0.1:10,http://127.0.0.1:9": "http://127.0.0.1:10,http://127.0.0.1:9",
    "http://127.0.0.1:01": "http://127.0.0.1:1",
    "http://127.0.0.1:1#": "http://127.0.0.1:1",
    "http://[::1]:1": "http://[::1]:1",
    "http://LOCALHOST:1": "http://LOCALHOST:1",
    "http://a_b:1": "http://a_b:1",
    "http://a!$&'()*+;=<>\"~b:1": "http://a!$&'()*+;=<>\"~b:1",
}
_SCHEME = "URL scheme must be http, https, unix, or unixs: "
_FORM = 'URL address does not have the form "host:port": '
NO_URLS = {
    "foo": _SCHEME + "foo",
    ",": _SCHEME,
    "ftp://h:1": _SCHEME + "ftp://h:1",
    "localhost:1": _SCHEME + "localhost:1",
    "//h:1": _SCHEME + "//h:1",
    "127.0.0.1:1": 'parse "127.0.0.1:1": first path segment in URL cannot contain colon',
    "://h:1": 'parse "://h:1": missing protocol scheme',
    "http:h:1": _FORM + "http:h:1",
    "http:///h:1": _FORM + "http:///h:1",
    "http://h": _FORM + "http://h",
    "http://::1:1": _FORM + "http://::1:1",
    "http://[::1]": _FORM + "http://[::1]",
    "http://h:1/": "URL must not contain a path: http://h:1/",
    "http://h:http": 'parse "http://h:http": invalid port ":http" after host',
    "http://h:+1": 'parse "http://h:+1": invalid port ":+1" after host',
    "http://[::1]x:1": 'parse "http://[::1]x:1": invalid port "x:1" after host',
    "http://[::1:1": "parse \"http://[::1:1\": missing ']' in host",
    "http://a b:1": 'parse "http://a b:1": invalid character " " in host name',
    "http://a|b:1": 'parse "http://a|b:1": invalid character "|" in host name',
    "http://%31:1": 'parse "http://%31:1": invalid URL escape "%31"',
    "http://[::1%lo]:1": 'parse "http://[::1%lo]:1": invalid URL escape "%lo"',
    "http://h\x01:1": 'parse "http://h\\x01:1": net/url: invalid control character in URL',
}
LEVELS = {"INFO": "info", "Warn": "warn", "": "info", "dpanic": "dpanic"}


def refused(flag, value, error):
    return flag, value, f"invalid value {json.dumps(value, ensure_ascii=False)} for flag -{flag}: {error}"


TAKEN = [
    *((flag, text, value) for text, value in NUMBERS.items() for flag in (COUNT, INTEGER)),
    *((INTEGER, text, value) for text, value in SIGNED.items()),
    *((SWITCH, text, value) for text, value in SWITCHES.items()),
    *((DURATION, text, text) for text in DURATIONS),
    *((RETENTION, text, text) for text in RETENTIONS),
    *((ADVERTISED, text, text) for text in URLS),
    *(("log-level", text, value) for text, value in LEVELS.items()),
]
REFUSED = [
    *(refused(flag, text, "parse error") for text in NO_NUMBERS for flag in (COUNT, INTEGER)),
    *(refused(COUNT, text, "parse error") for text in ("-1", "+5")),
    refused(COUNT, str(2**64), "value out of range"),
    refused(INTEGER, "0x8000000000000000", "value out of range"),
    *((SWITCH, text, f'invalid boolean value "{text}" for -{SWITCH}: parse error') for text in NO_SWITCHES),
    *(refused(DURATION, text, "parse error") for text in NO_DURATIONS),
    *(
        (RETENTION, text, f"error parsing CompactionRetention: {error}")
        for text, error in NO_RETENTIONS.items()
    ),
    *(
        (flag, text, refused(flag, text, error)[2].replace("\\u0001", "\\x01"))
        for text, error in NO_URLS.items()
        for flag in (ADVERTISED, LISTENED)
    ),
    (
        ADVERTISED,
        "http://:1",
        '--advertise-client-urls "http://:1" must be "host:port" (unexpected empty host (http://:1))',
    ),
    *(
        (LISTENED, f"http://{host}:1", f"expected IP in URL for binding (http://{host}:1)")
        for host in ("h.example", "127.1", "1", "*", "LOCALHOST")
    ),
]


@pytest.mark.parametrize(("flag", "text", "value"), TAKEN)
def test_a_value_that_etcd_takes(flag, text, value):
    config = load({flag: text}, {}).config
    config.validate()
    assert getattr(config, TABLE[flag].field) == value


@pytest.mark.parametrize(("flag", "text", "error"), REFUSED)
def test_a_value_that_etcd_refuses(flag, text, error):
    with pytest.raises(ConfigError) as caught:
        load({flag: text}, {}).config.validate()
    assert caught.value.text == error


def test_values_mean_what_they_mean_in_etcd():
    assert {text: parse_duration(text) for text in DURATIONS} == DURATIONS
    assert {text: load({RETENTION: text}, {}).config.retention for text in RETENTIONS} == RETENTIONS
    shown = {text: load({ADVERTISED: text}, {}).config.advertise_client for text in URLS}
    assert {text: ",".join(map(str, urls)) for text, urls in shown.items()} == URLS
    twice = load({"listen-client-urls": "http://h:1,http://h:1", ADVERTISED: "http://h:1"}, {}).config
    assert len(twice.listen_client) == 1
    for flag in ("listen-client-urls", "listen-peer-urls", "initial-advertise-peer-urls", ADVERTISED):
        companion = {ADVERTISED: "http://h:1"} if flag == "listen-client-urls" else {}
        given = load({flag: "", **companion}, {})
        assert getattr(given.config, TABLE[flag].field) == getattr(load({}, {}).config, TABLE[flag].field)
        assert given.origins[flag] == f"flag --{flag}"


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("http://h:", 'invalid port ":" after host: http://h:'),
        ("http://h:65536", 'invalid port ":65536" after host: http://h:65536'),
        (
            "http://user:secret@h:1",
            "URL must not contain a user, a query or a fragment: http://user:secret@h:1",
        ),
        ("http://h:1?x=y", "URL must not contain a user, a query or a fragment: http://h:1?x=y"),
        ("http://h:1#x", "URL must not contain a user, a query or a fragment: http://h:1#x"),
        ("http://[fe80::1%25eth0]:1", "URL with an IPv6 zone is not supported: http://[fe80::1%25eth0]:1"),
        ("unix://a:1", "URL of a unix socket is not supported: unix://a:1"),
    ],
)
def test_urls_that_only_etcd_takes(url, error):
    """docs/compatibility.md names them."""
    with pytest.raises(ValueError, match=r"URL|port") as caught:
        parse_url(url)
    assert str(caught.value) == error


@pytest.mark.parametrize(
    ("args", "read"),
    [
        (["-name", "a"], ["--name=a"]),
        (["--name", "--pre-vote"], ["--name=--pre-vote"]),
        (["-pre-vote", "--force-new-cluster=F"], ["--pre-vote=true", "--force-new-cluster=F"]),
        (["--max-wals", "-1", "--"], ["--max-wals=-1"]),
        (["--version=false", "-h"], ["--help"]),
    ],
)
def test_flags_are_split_as_go_splits_them(args, read):
    assert _read_flags(args) == read


ARGUMENTS = [
    (["--name"], 2, "flag needs an argument: -name"),
    (["--nam", "a"], 2, "flag provided but not defined: -nam"),
    (["-nope=1"], 2, "flag provided but not defined: -nope"),
    (["---name", "a"], 2, "bad flag syntax: ---name"),
    (["--=x"], 2, "bad flag syntax: --=x"),
    (["--pre-vote", "false"], 1, "'false' is not a valid flag"),
    (["--", "x"], 1, "'x' is not a valid flag"),
    (["-"], 1, "'-' is not a valid flag"),
]


@pytest.mark.parametrize(("args", "code", "error"), ARGUMENTS)
def test_arguments_that_etcd_refuses(args, code, error, ours):
    done = ours(["server", *args])
    assert (done.code, done.err.decode()) == (code, f"Error: {error}\n")


def asked(etcd_folder, directory, args):
    """How a real etcd takes flags: its exit code and its refusal; None where it takes them."""
    with socket.create_server(("127.0.0.1", 0)) as taken:  # it is refused this port once it took its flags
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        base = [
            f"--data-dir={directory}",
            "--listen-peer-urls=http://127.0.0.1:0",
            f"--listen-client-urls={url}",
        ]
        if not any(arg.startswith(f"--{ADVERTISED}") for arg in args):
            base.append(f"--{ADVERTISED}={url}")
        environment = {name: text for name, text in os.environ.items() if not name.startswith("ETCD")}
        done = subprocess.run(
            [str(etcd_folder / "etcd"), *base, *args],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            timeout=60,
        )
    lines = done.stderr.splitlines()
    if any("address already in use" in line for line in lines):
        return None
    errors = [json.loads(line).get("error") for line in lines if line.startswith("{")]
    plain = [line for line in lines if not line.startswith("{")]
    return done.returncode, next(filter(None, errors), plain[0] if plain else "")


@pytest.mark.parametrize("flag", [COUNT, INTEGER, SWITCH, DURATION, ADVERTISED, LISTENED, "log-level"])
def test_the_table_is_etcds(flag, etcd_folder, tmp_path):
    for name, text, _ in TAKEN:
        if name == flag:
            assert asked(etcd_folder, tmp_path / "d", [f"--{flag}={text}"]) is None, text
    for name, text, error in REFUSED:
        if name == flag:
            assert asked(etcd_folder, tmp_path / "d", [f"--{flag}={text}"])[1] == error


def test_the_arguments_are_etcds(etcd_folder, tmp_path):
    for args, code, error in ARGUMENTS:
        assert asked(etcd_folder, tmp_path / "d", args) == (code, error)
