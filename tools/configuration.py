"""Write docs/configuration.md from the table of settings.

python tools/configuration.py            write the page
python tools/configuration.py --check    write nothing; fail if the page is stale
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from kvstore.configuration.config_loader import TABLE  # noqa: E402  after the path is set
from kvstore.configuration.config_setting import Group, Handling, Setting  # noqa: E402  after the path is set

PAGE = ROOT / "docs" / "configuration.md"

INTRODUCTION = """\
# Configuration

Written by `tools/configuration.py` from the table in `kvstore/configuration/member_config.py`.

A setting has one name. `--listen-client-urls` is the flag, `ETCD_LISTEN_CLIENT_URLS` the environment
variable, `listen-client-urls` the key of a configuration file, and `listen_client_urls` the field of
`kvstore.Config`. Names, defaults and errors are etcd's.

* The same setting by flag and by variable is an error. An empty variable counts as absent; an unknown
  `ETCD_*` variable is warned about; an unknown flag or key is an error.
* `--config-file` (or `ETCD_CONFIG_FILE`) replaces flags and variables altogether. A name that ends in
  `.toml` is read as TOML, any other as YAML, for which the extra `yaml` must be installed.
* `kvstore server --print-config` prints every value with its origin, in a form that is itself a
  configuration file.
* A member whose data directory is in use takes its cluster from there. It ignores `initial-cluster`,
  `initial-cluster-state`, `initial-cluster-token`, `initial-advertise-peer-urls` and what is "refused at a
  first start" below, as etcd does.
* `--listen-client-urls` needs `--advertise-client-urls` beside it. A `Config` made in a program derives
  it, and takes port 0 for a port of the system's choice.

## Exit codes of `kvstore server`

| code | meaning |
|---|---|
| 0 | stopped by SIGINT or SIGTERM |
| 1 | it cannot start: the configuration, the data directory or a port is wrong; one line says which |
| 2 | a flag is unknown or cannot be read |
| 3 | it failed while running, for example its disk; it acknowledged nothing from then on |
| 4 | stopping took longer than 2.5 s and was aborted; everything acknowledged is on disk |
| 74 | a sync of the log hung for 10 s; the other members could elect a leader long before |

A second signal ends the process at once, by that signal.
"""


def render() -> str:
    """The whole page."""
    parts = [INTRODUCTION, "\n## Settings\n"]
    for group in Group:
        used = [row for row in TABLE.values() if row.group is group and row.handling is Handling.USED]
        if used:
            parts.append(f"\n### {group.value}\n\n| setting | default | meaning |\n|---|---|---|\n")
            parts.extend(f"| `{row.name}` | {_default(row)} | {_meaning(row)} |\n" for row in used)
    parts.append(
        "\n## Refused\n\nKnown to etcd. Only etcd's default is accepted: ignoring them is unsafe.\n\n"
    )
    parts.append(_short_table(Handling.REFUSED))
    parts.append(
        "\n## Refused at a first start\n\nKnown to etcd. Other ways to find a cluster, which there are not."
        " A member with data ignores them and warns.\n\n"
    )
    parts.append(_short_table(Handling.BOOTSTRAP))
    parts.append("\n## Ignored\n\nKnown to etcd. A value other than etcd's default is warned about.\n\n")
    parts.append(_short_table(Handling.IGNORED))
    return "".join(parts)


def _default(row: Setting) -> str:
    return f"`{row.default}`" if row.default else ""


def _meaning(row: Setting) -> str:
    return f"{row.help} One of {', '.join(row.choices)}." if row.choices else row.help


def _short_table(handling: Handling) -> str:
    rows = [row for row in TABLE.values() if row.handling is handling]
    lines = [f"| `{row.name}` | {_default(row)} | {row.help} |\n" for row in rows]
    return "| setting | default | why |\n|---|---|---|\n" + "".join(lines)


def main() -> int:
    """Write or check the page; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page is stale")
    page = render()
    if parser.parse_args().check:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page:
            sys.stderr.write(f"{PAGE.relative_to(ROOT)} is stale: run python tools/configuration.py\n")
            return 1
        return 0
    PAGE.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
