"""Settings of etcd 3.5 and 3.6 that have no effect here.

Tools that start etcd pass them, so they are accepted. A value other than etcd's default gets a warning, or an
error where ignoring it would be unsafe (a user who wants TLS must not get plain text). Those that only choose
how a new member begins are an error at a first start alone: with data, etcd does not read them either. Order,
defaults and wording follow `etcd --help`.
"""

from __future__ import annotations

from kvstore.configuration.config_setting import Group, Handling, Kind, Setting

_T, _B, _N, _I, _D, _U = Kind.TEXT, Kind.SWITCH, Kind.COUNT, Kind.INTEGER, Kind.DURATION, Kind.URLS

# name, kind, etcd's default, why it has no effect here
_IGNORED: dict[Group, tuple[tuple[str, Kind, str, str], ...]] = {
    Group.MEMBER: (
        ("wal-dir", _T, "", "The log lies in the data directory."),
        ("listen-client-http-urls", _U, "", "HTTP is not served apart from gRPC."),
        ("max-snapshots", _N, "5", "The newest state is kept."),
        ("max-wals", _N, "5", "The log is compacted by size."),
        ("backend-bbolt-freelist-type", _T, "map", "The state is not kept in bbolt."),
        ("backend-batch-interval", _D, "", "The state is written by size."),
        ("backend-batch-limit", _I, "0", "The state is written by size."),
        ("max-concurrent-streams", _N, "4294967295", "Streams are bounded by memory."),
        ("grpc-keepalive-min-time", _D, "5s", "Clients may ping as often as they like."),
        ("raft-read-timeout", _D, "5s", "Peers are judged by their silence."),
        ("raft-write-timeout", _D, "5s", "Peers are judged by their silence."),
        ("socket-reuse-port", _B, "false", "Two servers never share a port."),
        ("socket-reuse-address", _B, "false", "Set by the system."),
        ("enable-grpc-gateway", _B, "true", "No JSON gateway is served."),
        ("feature-gates", _T, "", "There are no feature gates."),
    ),
    Group.CLUSTERING: (
        ("discovery-fallback", _T, "proxy", "There is no discovery service."),
        ("discovery-proxy", _T, "", "There is no discovery service."),
        ("pre-vote", _B, "true", "Always on."),
        ("enable-v2", _B, "false", "Version 2 of the API is not served."),
        ("wait-cluster-ready-timeout", _D, "5s", "A member serves once it has joined."),
        ("v2-deprecation", _T, "not-yet", "Version 2 of the API is not served."),
    ),
    Group.SECURITY: (
        ("self-signed-cert-validity", _N, "1", "There is no TLS."),
        ("cipher-suites", _T, "", "There is no TLS."),
        ("tls-min-version", _T, "TLS1.2", "There is no TLS."),
        ("tls-max-version", _T, "", "There is no TLS."),
        ("cors", _T, "*", "No JSON gateway is served."),
        ("host-whitelist", _T, "*", "No JSON gateway is served."),
    ),
    Group.AUTH: (
        ("auth-token", _T, "simple", "There are no users."),
        ("bcrypt-cost", _N, "10", "There are no users."),
        ("auth-token-ttl", _N, "300", "There are no users."),
    ),
    Group.MONITORING: (
        ("enable-pprof", _B, "false", "Profiles are taken from outside the process."),
        ("metrics", _T, "basic", "All metrics are always exported."),
        ("warning-apply-duration", _D, "100ms", "Slow applies are seen in the metrics."),
        ("warning-unary-request-duration", _D, "300ms", "Slow requests are seen in the metrics."),
        ("enable-distributed-tracing", _B, "false", "Traces are not exported."),
        ("distributed-tracing-address", _T, "localhost:4317", "Traces are not exported."),
        ("distributed-tracing-service-name", _T, "etcd", "Traces are not exported."),
        ("distributed-tracing-instance-id", _T, "", "Traces are not exported."),
        ("distributed-tracing-sampling-rate", _N, "0", "Traces are not exported."),
    ),
    Group.LOGGING: (
        ("logger", _T, "zap", "Lines are formed by log-format."),
        ("enable-log-rotation", _B, "false", "Files are rotated from outside the process."),
        (
            "log-rotation-config-json",
            _T,
            '{"maxsize": 100, "maxage": 0, "maxbackups": 0, "localtime": false, "compress": false}',
            "Files are rotated from outside the process.",
        ),
    ),
    Group.EXPERIMENTAL: (
        ("proxy-failure-wait", _N, "5000", "There is no proxy."),
        ("proxy-refresh-interval", _N, "30000", "There is no proxy."),
        ("proxy-dial-timeout", _N, "1000", "There is no proxy."),
        ("proxy-write-timeout", _N, "5000", "There is no proxy."),
        ("proxy-read-timeout", _N, "0", "There is no proxy."),
        ("corrupt-check-time", _D, "0s", "Members are not compared while they run."),
        ("initial-corrupt-check", _B, "false", "Members are not compared when they start."),
        ("compact-hash-check-enabled", _B, "false", "Members are not compared while they run."),
        ("compact-hash-check-time", _D, "1m", "Members are not compared while they run."),
        ("enable-lease-checkpoint-persist", _B, "false", "Checkpoints of leases always last."),
        ("compaction-batch-limit", _I, "1000", "Compaction is paced by bytes."),
        ("compaction-sleep-interval", _D, "10ms", "Compaction is paced by bytes."),
        ("stop-grpc-service-on-defrag", _B, "false", "There is no defragmentation."),
        ("bootstrap-defrag-threshold-megabytes", _N, "0", "There is no defragmentation."),
        ("memory-mlock", _B, "false", "Set by the system."),
        ("txn-mode-write-with-shared-buffer", _B, "true", "Transactions read the state in memory."),
        ("downgrade-check-time", _D, "5s", "There is no release before."),
        ("set-member-localaddr", _B, "false", "Set by the system."),
        ("enable-v2v3", _T, "", "Version 2 of the API is not served."),
    ),
    Group.UNSAFE: (("unsafe-no-fsync", _B, "false", "Every write is synced."),),
}

_BOOTSTRAP: dict[Group, tuple[tuple[str, Kind, str, str], ...]] = {
    Group.CLUSTERING: (
        ("discovery", _T, "", "There is no discovery service."),
        ("discovery-srv", _T, "", "There is no discovery service."),
        ("discovery-srv-name", _T, "", "There is no discovery service."),
        ("discovery-token", _T, "", "There is no discovery service."),
        ("discovery-endpoints", _T, "", "There is no discovery service."),
        ("discovery-dial-timeout", _D, "2s", "There is no discovery service."),
        ("discovery-request-timeout", _D, "5s", "There is no discovery service."),
        ("discovery-keepalive-time", _D, "2s", "There is no discovery service."),
        ("discovery-keepalive-timeout", _D, "6s", "There is no discovery service."),
        ("discovery-insecure-transport", _B, "true", "There is no discovery service."),
        ("discovery-insecure-skip-tls-verify", _B, "false", "There is no discovery service."),
        ("discovery-cert", _T, "", "There is no discovery service."),
        ("discovery-key", _T, "", "There is no discovery service."),
        ("discovery-cacert", _T, "", "There is no discovery service."),
        ("discovery-user", _T, "", "There is no discovery service."),
        ("discovery-password", _T, "", "There is no discovery service."),
    ),
    Group.EXPERIMENTAL: (("proxy", _T, "off", "There is no proxy."),),
}

_REFUSED: dict[Group, tuple[tuple[str, Kind, str, str], ...]] = {
    Group.SECURITY: (
        ("cert-file", _T, "", "There is no TLS."),
        ("key-file", _T, "", "There is no TLS."),
        ("client-cert-file", _T, "", "There is no TLS."),
        ("client-key-file", _T, "", "There is no TLS."),
        ("client-cert-auth", _B, "false", "There is no TLS."),
        ("client-crl-file", _T, "", "There is no TLS."),
        ("client-cert-allowed-hostname", _T, "", "There is no TLS."),
        ("trusted-ca-file", _T, "", "There is no TLS."),
        ("auto-tls", _B, "false", "There is no TLS."),
        ("peer-cert-file", _T, "", "There is no TLS."),
        ("peer-key-file", _T, "", "There is no TLS."),
        ("peer-client-cert-file", _T, "", "There is no TLS."),
        ("peer-client-key-file", _T, "", "There is no TLS."),
        ("peer-client-cert-auth", _B, "false", "There is no TLS."),
        ("peer-trusted-ca-file", _T, "", "There is no TLS."),
        ("peer-cert-allowed-cn", _T, "", "There is no TLS."),
        ("peer-cert-allowed-hostname", _T, "", "There is no TLS."),
        ("peer-auto-tls", _B, "false", "There is no TLS."),
        ("peer-crl-file", _T, "", "There is no TLS."),
        ("peer-skip-client-san-verification", _B, "false", "There is no TLS."),
    ),
}

# etcd 3.5 spells these with the prefix `experimental-`, 3.6 without; both are known.
_ONCE_EXPERIMENTAL = frozenset(
    {name for name, *_ in _IGNORED[Group.EXPERIMENTAL] if not name.startswith("proxy-")}
    | {"wait-cluster-ready-timeout"}
    | {name for name, *_ in _IGNORED[Group.MONITORING] if "tracing" in name or name.startswith("warning-")}
    | {"peer-skip-client-san-verification"}
)


def _rows() -> list[Setting]:
    found: dict[str, Setting] = {}
    tables = ((Handling.IGNORED, _IGNORED), (Handling.BOOTSTRAP, _BOOTSTRAP), (Handling.REFUSED, _REFUSED))
    for handling, table in tables:
        for group, rows in table.items():
            for name, kind, default, text in rows:
                names = [name, f"experimental-{name}"] if name in _ONCE_EXPERIMENTAL else [name]
                for spelled in names:
                    found.setdefault(
                        spelled,
                        Setting(
                            name=spelled,
                            kind=kind,
                            default=default,
                            group=group,
                            help=text,
                            handling=handling,
                        ),
                    )
    return list(found.values())


ETCD_ONLY_SETTINGS: tuple[Setting, ...] = tuple(_rows())
