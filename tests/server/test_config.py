"""The configuration: one table, three ways in, each error one line in etcd's words."""

import dataclasses
import tomllib

import pytest

from kvstore import serve
from kvstore.configuration.config_loader import TABLE, load
from kvstore.configuration.config_setting import ConfigError, Handling, Kind, Url, parse_url
from kvstore.configuration.etcd_only_settings import ETCD_ONLY_SETTINGS
from kvstore.configuration.member_config import SETTINGS, Config

SAMPLES = {
    "name": "a",
    "data-dir": "/somewhere",
    "heartbeat-interval": "50",
    "election-timeout": "700",
    "listen-peer-urls": "http://127.0.0.1:2390",
    "listen-client-urls": "http://127.0.0.1:2389,http://127.0.0.2:2389",
    "quota-backend-bytes": "-1",
    "max-txn-ops": "7",
    "max-request-bytes": "1000",
    "grpc-keepalive-interval": "1m",
    "grpc-keepalive-timeout": "5s",
    "grpc-stack": "grpcio",
    "initial-advertise-peer-urls": "http://127.0.0.1:2390",
    "initial-cluster": "a=http://127.0.0.1:2390",
    "initial-cluster-state": "existing",
    "initial-cluster-token": "token",
    "force-new-cluster": "true",
    "strict-reconfig-check": "false",
    "max-learners": "3",
    "advertise-client-urls": "http://127.0.0.1:2389",
    "auto-compaction-mode": "revision",
    "auto-compaction-retention": "1000",
    "listen-metrics-urls": "http://127.0.0.1:2388",
    "watch-progress-notify-interval": "5s",
    "experimental-watch-progress-notify-interval": "300ms",
    "enable-lease-checkpoint": "true",
    "experimental-enable-lease-checkpoint": "true",
    "snapshot-count": "2000",
    "initial-election-tick-advance": "false",
    "snapshot-catchup-entries": "300",
    "experimental-snapshot-catchup-entries": "400",
    "log-level": "debug",
    "log-format": "console",
    "log-outputs": "stdout,/dev/null",
}


def variables(texts):
    return {TABLE[name].variable: text for name, text in texts.items()}


def toml(texts):
    return "\n".join(
        f"{name} = {text}" if TABLE[name].kind in {Kind.COUNT, Kind.INTEGER} else f'{name} = "{text}"'
        for name, text in texts.items()
    )


def yaml(texts):
    return "\n".join(f"{name}: {text}" for name, text in texts.items())


def test_samples_cover_the_table():
    assert set(SAMPLES) == {row.name for row in SETTINGS}


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_a_setting_reads_alike_from_flag_variable_and_files(name, tmp_path):
    # listen-client-urls needs its companion
    texts = {"advertise-client-urls": "http://h:1"} | {name: SAMPLES[name]}
    by_flag = load(texts, {})
    by_variable = load({}, variables(texts))
    configs = [by_flag.config, by_variable.config]
    for suffix, form in (("toml", toml), ("yaml", yaml), ("conf", yaml)):
        path = tmp_path / f"c.{suffix}"
        path.write_text(form(texts))
        by_file = load({"config-file": str(path)}, {})
        assert by_file.origins[name] == f"file {path}"
        assert by_file.warnings == []
        configs.append(by_file.config)
        assert load({}, {"ETCD_CONFIG_FILE": str(path)}).config == by_file.config
    assert all(config == configs[0] for config in configs)
    field = TABLE[name].field
    assert getattr(configs[0], field) != getattr(Config(), field)
    assert by_flag.origins[name] == f"flag --{name}"
    assert by_variable.origins[name] == f"environment {TABLE[name].variable}"


def test_defaults_are_etcds():
    loaded = load({}, {})
    assert loaded.config == Config()
    assert (loaded.origins, loaded.warnings) == ({}, [])
    config = loaded.config
    config.validate()
    assert str(config.directory) == "default.etcd"
    assert config.initial_members() == {"default": (Url("http", "localhost", 2380),)}
    assert config.advertise_client == config.listen_client == (Url("http", "localhost", 2379),)
    assert config.listen_metrics == ()
    assert config.quota_bytes == 2 << 30


def test_a_config_made_in_a_program_derives_what_follows():
    config = Config(
        name="a",
        listen_client_urls="http://127.0.0.1:0",
        listen_peer_urls="http://127.0.0.1:0",
        quota_backend_bytes=-1,
    )
    config.validate()
    assert config.advertise_client == (Url("http", "127.0.0.1", 0),)
    assert config.initial_members() == {"a": (Url("http", "127.0.0.1", 0),)}
    assert config.quota_bytes is None
    assert dataclasses.replace(config, quota_backend_bytes=5).quota_bytes == 5


def test_the_printed_configuration_names_origins_and_is_itself_a_file(tmp_path):
    loaded = load({"name": "a", "initial-cluster": "a=http://localhost:2380"}, {"ETCD_MAX_TXN_OPS": "9"})
    text = loaded.print()
    line = {part.partition(" = ")[0]: part for part in text.splitlines()}
    assert line["name"].split() == ["name", "=", '"a"', "#", "flag", "--name"]
    assert line["max-txn-ops"].split() == ["max-txn-ops", "=", "9", "#", "environment", "ETCD_MAX_TXN_OPS"]
    assert line["log-level"].endswith("# default")
    assert line["data-dir"].startswith('data-dir = "a.etcd"')
    assert set(tomllib.loads(text)) == {row.name for row in SETTINGS}
    path = tmp_path / "again.toml"
    path.write_text(text)
    again = load({"config-file": str(path)}, {}).config
    again.validate()
    assert again.initial_members() == loaded.config.initial_members()


@pytest.mark.parametrize(
    ("flags", "text", "usage"),
    [
        (
            {"heartbeat-interval": "abc"},
            'invalid value "abc" for flag -heartbeat-interval: parse error',
            True,
        ),
        ({"heartbeat-interval": "-1"}, 'invalid value "-1" for flag -heartbeat-interval: parse error', True),
        (
            {"quota-backend-bytes": str(2**63)},
            f'invalid value "{2**63}" for flag -quota-backend-bytes: value out of range',
            True,
        ),
        (
            {"listen-client-urls": "foo"},
            (
                'invalid value "foo" for flag -listen-client-urls:'
                " URL scheme must be http, https, unix, or unixs: foo"
            ),
            True,
        ),
        (
            {"listen-client-urls": "http://127.0.0.1"},
            (
                'invalid value "http://127.0.0.1" for flag -listen-client-urls:'
                ' URL address does not have the form "host:port": http://127.0.0.1'
            ),
            True,
        ),
        (
            {"advertise-client-urls": "http://127.0.0.1:2379/path"},
            (
                'invalid value "http://127.0.0.1:2379/path" for flag -advertise-client-urls:'
                " URL must not contain a path: http://127.0.0.1:2379/path"
            ),
            True,
        ),
        (
            {"listen-peer-urls": "http://127.0.0.1:99999"},
            (
                'invalid value "http://127.0.0.1:99999" for flag -listen-peer-urls:'
                ' invalid port ":99999" after host: http://127.0.0.1:99999'
            ),
            True,
        ),
        (
            {"initial-cluster-state": "old"},
            'invalid value "old" for flag -initial-cluster-state: must be one of new, existing',
            True,
        ),
        ({"pre-vote": "maybe"}, 'invalid boolean value "maybe" for -pre-vote: parse error', True),
        (
            {"grpc-keepalive-timeout": "5"},
            'invalid value "5" for flag -grpc-keepalive-timeout: parse error',
            True,
        ),
        (
            {"listen-client-urls": "http://127.0.0.1:1"},
            "--advertise-client-urls is required when --listen-client-urls is set explicitly",
            False,
        ),
        (
            {"cert-file": "x"},
            "--cert-file is not supported and cannot be ignored. There is no TLS.",
            False,
        ),
        (
            {"peer-auto-tls": "true"},
            "--peer-auto-tls is not supported and cannot be ignored. There is no TLS.",
            False,
        ),
        (
            {"config-file": "/nowhere/c.toml"},
            "cannot read config file /nowhere/c.toml: No such file or directory",
            False,
        ),
    ],
)
def test_what_cannot_be_read_is_one_line(flags, text, usage):
    with pytest.raises(ConfigError) as caught:
        load(flags, {})
    assert (caught.value.text, caught.value.usage) == (text, usage)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"heartbeat_interval": 0}, "--heartbeat-interval must be >0 (set to 0ms)"),
        ({"election_timeout": 0}, "--election-timeout must be >0 (set to 0ms)"),
        (
            {"election_timeout": 400},
            "--election-timeout[400ms] should be at least as 5 times as --heartbeat-interval[100ms]",
        ),
        (
            {"election_timeout": 60000},
            "--election-timeout[60000ms] is too long, and should be set less than 50000ms",
        ),
        (
            {"listen_client_urls": "http://foo.bar:2379"},
            "expected IP in URL for binding (http://foo.bar:2379)",
        ),
        ({"listen_peer_urls": "http://:2379"}, "expected IP in URL for binding (http://:2379)"),
        (
            {"listen_metrics_urls": "nonsense"},
            (
                'invalid value "nonsense" for --listen-metrics-urls:'
                " URL scheme must be http, https, unix, or unixs: nonsense"
            ),
        ),
        (
            {"advertise_client_urls": "http://:2379"},
            '--advertise-client-urls "http://:2379" must be "host:port" (unexpected empty host (http://:2379))',
        ),
        (
            {"listen_client_urls": "https://127.0.0.1:2379"},
            "TLS is not supported, so this URL cannot be served (https://127.0.0.1:2379)",
        ),
        ({"log_level": "loud"}, 'invalid value "loud" for --log-level'),
        ({"snapshot_count": -1}, 'invalid value "-1" for --snapshot-count: parse error'),
        (
            {"quota_backend_bytes": 2**63},
            f'invalid value "{2**63}" for --quota-backend-bytes: value out of range',
        ),
        (
            {"grpc_keepalive_interval": "soon"},
            'invalid value "soon" for --grpc-keepalive-interval: parse error',
        ),
        ({"max_txn_ops": 0}, "--max-txn-ops must be >0 (set to 0)"),
        ({"max_request_bytes": 0}, "--max-request-bytes must be >0 (set to 0)"),
        (
            {"max_request_bytes": 10485761},
            (
                "--max-request-bytes must be at most 10485760, so that a request fits into the log"
                " (set to 10485761)"
            ),
        ),
        (
            {"listen_client_urls": "http://127.0.0.1%lo:2379"},
            (
                'invalid value "http://127.0.0.1%lo:2379" for --listen-client-urls:'
                ' parse "http://127.0.0.1%lo:2379": invalid URL escape "%lo"'
            ),
        ),
    ],
)
def test_broken_rules_are_named(values, text):
    with pytest.raises(ConfigError) as caught:
        Config(**values).validate()
    assert caught.value.text == text


NOT_OF_THE_TYPE = {str: [5, None, b"a", ["a"]], int: ["5", None, 1.5, True], bool: ["true", None, 1]}


@pytest.mark.parametrize("field", [row.field for row in SETTINGS])
def test_a_value_of_the_wrong_type_is_named(field):
    fits = getattr(Config(), field)
    for value in NOT_OF_THE_TYPE[type(fits)]:
        with pytest.raises(ConfigError) as caught:
            Config(**{field: value}).validate()
        types = f"must be {type(fits).__name__}, not {type(value).__name__}"
        assert caught.value.text == f"invalid value {value!r} for --{field.replace('_', '-')}: {types}"


@pytest.mark.asyncio
async def test_serve_names_it_too():
    with pytest.raises(ConfigError, match="--election-timeout: must be int, not str"):
        async with serve(Config(election_timeout="1000")):
            pytest.fail("it served")


def test_a_directory_may_be_a_path(tmp_path):
    config = Config(data_dir=tmp_path)
    config.validate()
    assert config.directory == tmp_path
    with pytest.raises(ConfigError, match="--name: must be str, not PosixPath"):
        Config(name=tmp_path).validate()


@pytest.mark.parametrize(
    ("cluster", "text"),
    [
        ("b=http://127.0.0.1:1", 'couldn\'t find local name "a" in the initial cluster configuration'),
        (
            "a=http://127.0.0.1:2380,b=http://127.0.0.1:2380",
            "initial cluster a=http://127.0.0.1:2380,b=http://127.0.0.1:2380 has duplicate url",
        ),
        (
            "a=http://127.0.0.1:2380,b",
            "error setting up initial cluster: URL scheme must be http, https, unix, or unixs: ",
        ),
        (",", 'couldn\'t find local name "a" in the initial cluster configuration'),
    ],
)
def test_an_initial_cluster_must_fit_its_member(cluster, text):
    config = Config(name="a", listen_peer_urls="http://127.0.0.1:2380", initial_cluster=cluster)
    config.validate()  # a member that has data does not ask
    with pytest.raises(ConfigError) as caught:
        config.initial_members()
    assert caught.value.text == text


@pytest.mark.parametrize("name", ["", "a=b", "a,b"])
def test_a_name_must_fit_into_an_initial_cluster(name):
    config = Config(name=name)
    config.validate()  # nor does it ask for this
    assert f'initial-cluster = "{name}=http://localhost:2380"' in load({"name": name}, {}).print()
    with pytest.raises(ConfigError) as caught:
        config.initial_members()
    assert caught.value.text == f'--name "{name}" must be neither empty nor contain a comma or an equals sign'


BOOTSTRAP_ONLY = [row.name for row in ETCD_ONLY_SETTINGS if row.handling is Handling.BOOTSTRAP]


@pytest.mark.parametrize("name", BOOTSTRAP_ONLY)
def test_another_kind_of_bootstrap_is_refused_at_a_first_start_and_ignored_later(name):
    other = {Kind.SWITCH: "false" if TABLE[name].default == "true" else "true", Kind.DURATION: "77s"}
    loaded = load({name: other.get(TABLE[name].kind, "77")}, {})
    with pytest.raises(ConfigError) as caught:
        loaded.check_bootstrap(has_data=False)
    assert caught.value.text.startswith(f"--{name} is not supported and cannot be ignored. There is no ")
    assert loaded.warnings == []
    loaded.check_bootstrap(has_data=True)
    assert loaded.warnings == [f"--{name} is ignored since the member is already initialized"]
    assert loaded.config == Config()


def test_two_kinds_of_bootstrap_at_once_are_refused_at_every_start():
    text = (
        "multiple discovery or bootstrap flags are set."
        ' Choose one of "initial-cluster", "discovery" or "discovery-srv"'
    )
    service = {"discovery": "http://127.0.0.1:1/x"}
    for flags in (service | {"discovery-srv": "a.example"}, service | {"initial-cluster": "a=http://h:1"}):
        with pytest.raises(ConfigError) as caught:
            load(flags, {})
        assert caught.value.text == text
    assert load(service | {"initial-cluster": ""}, {}).bootstrap_only


def test_a_setting_given_by_flag_and_variable_is_an_error():
    with pytest.raises(ConfigError, match="conflicting environment variable ETCD_NAME is shadowed"):
        load({"name": "a"}, {"ETCD_NAME": "b"})
    assert load({"name": "a"}, {"ETCD_NAME": ""}).config.name == "a"


def test_unknown_variables_warn_and_empty_ones_are_ignored():
    loaded = load({}, {"ETCD_FOO": "x", "ETCD_NAME": "", "ETCDCTL_API": "3", "HOME": "/"})
    assert loaded.warnings == ["unrecognized environment variable ETCD_FOO=x"]
    assert loaded.config == Config()
    with pytest.raises(ConfigError, match='invalid value "x" for ETCD_ELECTION_TIMEOUT: parse error'):
        load({}, {"ETCD_ELECTION_TIMEOUT": "x"})


@pytest.mark.parametrize("row", ETCD_ONLY_SETTINGS, ids=lambda row: row.name)
def test_third_party_settings_pass_at_their_default_and_speak_up_otherwise(row):
    if row.default:
        assert load({row.name: row.default}, {}).warnings == []
    other = {Kind.SWITCH: "false" if row.default == "true" else "true", Kind.DURATION: "77s"}.get(
        row.kind, "77"
    )
    if row.kind is Kind.URLS:
        other = "http://127.0.0.1:1"
    if row.handling is Handling.BOOTSTRAP:
        assert load({row.name: other}, {}).bootstrap_only == [row]
    elif row.handling is Handling.REFUSED:
        with pytest.raises(ConfigError, match="is not supported and cannot be ignored"):
            load({row.name: other}, {})
    else:
        loaded = load({row.name: other}, {})
        assert [line.split()[0] for line in loaded.warnings] == [f"--{row.name}"]
        assert loaded.config == Config()


def test_a_file_replaces_flags_and_variables(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text('name = "filed"\n')
    loaded = load({"config-file": str(path), "name": "flag"}, {"ETCD_MAX_TXN_OPS": "1"})
    assert (loaded.config.name, loaded.config.max_txn_ops) == ("filed", 128)
    assert loaded.warnings == [f"flags and ETCD_* variables are ignored because {path} is given"]


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("c.toml", 'name = "a\n', "not valid TOML: Illegal character '\\n' (at line 1, column 10)"),
        ("c.toml", "nam = 1\n", 'unknown setting "nam"'),
        ("c.toml", "name = 1.5\n", '"name" must be a text, a number or a list of texts'),
        (
            "c.yaml",
            "a: b\nb: @\n",
            "not valid YAML: found character '@' that cannot start any token (at line 2, column 4)",
        ),
        ("c.yaml", "just words\n", "not a list of settings and their values"),
        (
            "c.yaml",
            "peer-transport-security: on\n",
            '"peer-transport-security" must be a section of settings and their values',
        ),
        ("c.toml", b"\xff\xfe", "not UTF-8 at byte 0"),
    ],
)
def test_a_broken_file_is_one_line_with_its_position(name, content, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as caught:
        load({"config-file": name}, {})
    assert caught.value.text == f"{name}: {text}"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("max-txn-ops: true", 'invalid value "true" for "max-txn-ops" in c.yaml: parse error'),
        ("client-transport-security: {cert-file: x}", "--cert-file is not supported"),
        ("peer-transport-security: {auto-tls: true}", "--peer-auto-tls is not supported"),
    ],
)
def test_a_wrong_value_in_a_file_is_named(content, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(ConfigError) as caught:
        load({"config-file": "c.yaml"}, {})
    assert caught.value.text.startswith(text)


def test_a_file_may_hold_lists_sections_and_bare_durations(tmp_path):
    path = tmp_path / "etcd.conf.yml"
    path.write_text(
        "log-outputs: [stderr, /dev/null]\ngrpc-keepalive-timeout: 20000000000\nwal-dir:\n"
        "client-transport-security:\n  client-cert-auth: false\npeer-transport-security:\n"
    )
    loaded = load({"config-file": str(path)}, {})
    assert loaded.config.log_outputs == "stderr,/dev/null"
    assert loaded.config.keepalive_timeout_s == 20.0
    assert loaded.warnings == []


ETCD_SAMPLE = """
# This is the configuration file for the etcd server.
name: 'default'
data-dir:
wal-dir:
snapshot-count: 10000
heartbeat-interval: 100
election-timeout: 1000
quota-backend-bytes: 0
listen-peer-urls: http://localhost:2380
listen-client-urls: http://localhost:2379
max-snapshots: 5
max-wals: 5
cors:
initial-advertise-peer-urls: http://localhost:2380
advertise-client-urls: http://localhost:2379
discovery:
discovery-fallback: 'proxy'
discovery-proxy:
discovery-srv:
initial-cluster:
initial-cluster-token: 'etcd-cluster'
initial-cluster-state: 'new'
strict-reconfig-check: false
enable-pprof: true
proxy: 'off'
proxy-failure-wait: 5000
client-transport-security:
  cert-file:
  key-file:
  client-cert-auth: false
  trusted-ca-file:
  auto-tls: false
peer-transport-security:
  cert-file:
  key-file:
  client-cert-auth: false
  trusted-ca-file:
  auto-tls: false
  allowed-cn:
  allowed-hostname:
self-signed-cert-validity: 1
log-level: debug
logger: zap
log-outputs: [stderr]
force-new-cluster: false
auto-compaction-mode: periodic
auto-compaction-retention: "1"
cipher-suites: [
  TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
  TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384
]
tls-min-version: 'TLS1.2'
tls-max-version: 'TLS1.3'
"""


def test_etcds_sample_file_is_read(tmp_path):
    path = tmp_path / "etcd.conf.yml"
    path.write_text(ETCD_SAMPLE)
    loaded = load({"config-file": str(path)}, {})
    loaded.config.validate()
    assert loaded.config.log_level == "debug"
    assert loaded.config.compaction_entries == 10000
    assert [line.split()[0] for line in loaded.warnings] == [
        "--enable-pprof",
        "--cipher-suites",
        "--tls-max-version",
    ]


def test_yaml_without_its_library_is_one_line(tmp_path, monkeypatch):
    path = tmp_path / "c.yaml"
    path.write_text("name: a\n")
    monkeypatch.setitem(__import__("sys").modules, "yaml", None)
    with pytest.raises(ConfigError, match="reading YAML needs PyYAML"):
        load({"config-file": str(path)}, {})


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://127.0.0.1:2379", Url("http", "127.0.0.1", 2379)),
        (" https://[::1]:0 ", Url("https", "::1", 0)),
        ("http://host.name:80", Url("http", "host.name", 80)),
    ],
)
def test_urls_read_and_print(text, url):
    assert parse_url(text) == url
    assert str(url) == text.strip()
