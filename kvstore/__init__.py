"""A replicated key-value store that speaks the etcd v3 API.

Run one member in your own event loop::

    import kvstore

    async with kvstore.serve(kvstore.Config(name="a", data_dir="a.kvstore")) as node:
        print(node.client_urls)

or a whole cluster from a shell: `kvstore cluster up`. Any etcd v3 client talks to it. A member that cannot be
started raises `ConfigError` (a setting is wrong) or `StartError` (its directory, its ports, its cluster).

Names are loaded on first use, so that importing a pure package (`kvstore.engine`) loads no network code.
"""

from __future__ import annotations

TYPE_CHECKING = False  # `typing` would take a moment in which an interrupt of the command is not in hand
if TYPE_CHECKING:
    from kvstore.app import NodeHandle, StartError, serve
    from kvstore.configuration.config_setting import ConfigError
    from kvstore.configuration.member_config import Config
    from kvstore.version import __version__

__all__ = ["Config", "ConfigError", "NodeHandle", "StartError", "__version__", "serve"]

_HOMES = {
    "Config": "kvstore.configuration.member_config",
    "ConfigError": "kvstore.configuration.config_setting",
    "NodeHandle": "kvstore.app",
    "StartError": "kvstore.app",
    "__version__": "kvstore.version",
    "serve": "kvstore.app",
}
"""Where each public name lives; the keys are exactly `__all__`."""


def __getattr__(name: str) -> object:
    """Load a public name from its home on first use (PEP 562)."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    """What `dir(kvstore)` and completion show: the public names, loaded or not, and the packages loaded."""
    return sorted({*__all__, *globals()} - {"TYPE_CHECKING", "annotations"})
