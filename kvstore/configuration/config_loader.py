"""Loads the configuration of a server from flags, `ETCD_*` variables or a configuration file.

etcd's rules: a setting given by flag and by variable is an error; an empty variable is ignored; an unknown
one gets a warning; a configuration file replaces flags and variables.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvstore.configuration.config_setting import ConfigError, Handling, Kind, Setting
from kvstore.configuration.etcd_only_settings import ETCD_ONLY_SETTINGS
from kvstore.configuration.go_values import quote
from kvstore.configuration.member_config import SETTINGS, Config

PREFIX = "ETCD_"
CONFIG_FILE = "config-file"

TABLE: dict[str, Setting] = {row.name: row for row in (*SETTINGS, *ETCD_ONLY_SETTINGS)}
"""Every setting known, by name."""

_BY_VARIABLE = {row.variable: row for row in TABLE.values()}

# etcd's files hold the TLS settings in two sections. Per section: the prefix of its flags, and the keys whose
# flags are spelled differently.
_SECTIONS: dict[str, tuple[str, dict[str, str]]] = {
    "client-transport-security": (
        "",
        {"crl-file": "client-crl-file", "allowed-hostname": "client-cert-allowed-hostname"},
    ),
    "peer-transport-security": (
        "peer-",
        {"allowed-cn": "cert-allowed-cn", "allowed-hostname": "cert-allowed-hostname"},
    ),
}

DEFAULT_ORIGIN = "default"


@dataclass(slots=True)
class Loaded:
    config: Config
    origins: dict[str, str]
    """By setting's name; the others have their defaults."""
    warnings: list[str]
    bootstrap_only: list[Setting]
    """Settings of a kind of bootstrap that there is not, with a value other than the default."""

    def check_bootstrap(self, *, has_data: bool) -> None:
        """Raise ConfigError for `bootstrap_only` at a first start; with data, warn of it instead."""
        for row in self.bootstrap_only:
            if not has_data:
                raise _not_supported(row)
            self.warnings.append(f"--{row.name} is ignored since the member is already initialized")

    def print(self) -> str:
        """Every value with its origin, in a form that is itself a configuration file (TOML)."""
        config = self.config
        derived = {
            "data-dir": str(config.directory),
            "initial-advertise-peer-urls": ",".join(map(str, config.advertise_peer)),
            # not checked: a member with data does not read it
            "initial-cluster": config.initial_cluster
            or ",".join(f"{config.name}={url}" for url in config.advertise_peer),
            "advertise-client-urls": ",".join(map(str, config.advertise_client)),
        }
        lines = []
        for row in SETTINGS:
            value = derived.get(row.name, getattr(config, row.field))
            # JSON's strings, numbers and booleans are TOML's
            text = f"{row.name} = {json.dumps(value, ensure_ascii=False)}"
            lines.append(f"{text:<60}  # {self.origins.get(row.name, DEFAULT_ORIGIN)}")
        return "\n".join(lines) + "\n"


@dataclass(slots=True)
class _Given:
    values: dict[str, str | int | bool] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    bootstrap_only: list[Setting] = field(default_factory=list)

    def take(self, row: Setting, text: str, origin: str, position: str) -> None:
        if row.kind is Kind.URLS and not text:
            self.origins[row.name] = origin  # counts as given, and changes nothing, as in etcd
            return
        try:
            value = row.read(text)
        except ValueError as error:
            usage = origin.startswith("flag")
            refusal = f"invalid value {quote(text)} for {position}"
            if usage and row.kind is Kind.SWITCH:
                refusal = f"invalid boolean value {quote(text)} for -{row.name}"
            raise ConfigError(f"{refusal}: {error}", usage=usage) from None
        if row.handling is Handling.USED:
            self.values[row.field] = value
            self.origins[row.name] = origin
        elif text != row.default and value != (row.read(row.default) if row.default else ""):
            if row.handling is Handling.REFUSED:
                raise _not_supported(row)
            if row.handling is Handling.BOOTSTRAP:
                self.bootstrap_only.append(row)
            else:
                self.warnings.append(f"--{row.name} has no meaning here and is ignored. {row.help}")


def _not_supported(row: Setting) -> ConfigError:
    return ConfigError(f"--{row.name} is not supported and cannot be ignored. {row.help}")


def _check_one_bootstrap(given: _Given) -> None:
    """At most one way to find the members, at every start: etcd's rule, which is about flags alone."""
    ways = [row.name for row in given.bootstrap_only if row.name in ("discovery", "discovery-srv")]
    if len(ways) + bool(given.values.get("initial_cluster")) > 1:
        raise ConfigError(
            "multiple discovery or bootstrap flags are set."
            ' Choose one of "initial-cluster", "discovery" or "discovery-srv"'
        )


def load(flags: Mapping[str, str], environ: Mapping[str, str]) -> Loaded:
    """Load a configuration, not yet validated; every error is a ConfigError of one line.

    `flags` maps names of settings (and `config-file`) to their texts.
    """
    given = _Given()
    path = flags.get(CONFIG_FILE) or environ.get(PREFIX + "CONFIG_FILE")
    if path:
        _take_file(given, Path(path))
        if len(flags) > (CONFIG_FILE in flags):
            given.warnings.append(f"flags and {PREFIX}* variables are ignored because {path} is given")
    else:
        _take_flags(given, flags)
        _take_environment(given, flags, environ)
    _check_one_bootstrap(given)
    if "listen-client-urls" in given.origins and "advertise-client-urls" not in given.origins:
        raise ConfigError("--advertise-client-urls is required when --listen-client-urls is set explicitly")
    values: dict[str, Any] = dict(given.values)
    return Loaded(
        config=Config(**values),
        origins=given.origins,
        warnings=given.warnings,
        bootstrap_only=given.bootstrap_only,
    )


def _take_flags(given: _Given, flags: Mapping[str, str]) -> None:
    for name, text in flags.items():
        if name != CONFIG_FILE:
            given.take(TABLE[name], text, f"flag --{name}", f"flag -{name}")


def _take_environment(given: _Given, flags: Mapping[str, str], environ: Mapping[str, str]) -> None:
    for variable, text in sorted(environ.items()):
        if not variable.startswith(PREFIX) or not text:
            continue
        row = _BY_VARIABLE.get(variable)
        if row is None:
            given.warnings.append(f"unrecognized environment variable {variable}={text}")
        elif row.name in flags:
            raise ConfigError(
                f"conflicting environment variable {variable} is shadowed by corresponding command-line flag"
                " (either unset environment variable or disable flag)"
            )
        else:
            given.take(row, text, f"environment {variable}", variable)


def _take_file(given: _Given, path: Path) -> None:
    for name, value in _flat(path, _read_file(path)).items():
        row = TABLE.get(name)
        if row is None:
            raise ConfigError(f'{path}: unknown setting "{name}"')
        if value is None:  # YAML's form of a key left empty
            continue
        given.take(row, _text(path, row, value), f"file {path}", f'"{name}" in {path}')


def _flat(path: Path, document: object) -> dict[str, object]:
    """The settings of a file by name, those of sections under their flags' names."""
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: not a list of settings and their values")
    found: dict[str, object] = {}
    for key, value in document.items():
        if key not in _SECTIONS:
            found[str(key)] = value
        elif isinstance(value, dict):
            prefix, spelled = _SECTIONS[key]
            found.update({prefix + spelled.get(name, str(name)): inner for name, inner in value.items()})
        elif value is not None:  # YAML's form of a section left empty
            raise ConfigError(f'{path}: "{key}" must be a section of settings and their values')
    return found


def _text(path: Path, row: Setting, value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case int() if row.kind is Kind.DURATION:
            return f"{value}ns"  # as etcd reads a bare number there
        case int() | str():
            return str(value)
        case list() if all(isinstance(item, str) for item in value):
            return ",".join(value)
        case _:
            raise ConfigError(f'{path}: "{row.name}" must be a text, a number or a list of texts')


def _read_file(path: Path) -> object:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read config file {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}") from None
    if path.suffix != ".toml":
        return _read_yaml(path, text)
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None


def _read_yaml(path: Path, text: str) -> object:
    try:
        import yaml  # an extra, which only YAML files need
    except ImportError:
        raise ConfigError(
            f"{path}: reading YAML needs PyYAML (pip install 'raft-kvstore[yaml]'); a .toml file does not"
        ) from None
    try:
        return yaml.safe_load(text) or {}
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        position = f" (at line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise ConfigError(f"{path}: not valid YAML: {error.problem}{position}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from None
