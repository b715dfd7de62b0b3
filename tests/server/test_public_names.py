"""What `import kvstore` offers: names that are shown before they are loaded, and errors to be caught."""

import subprocess
import sys

import pytest

import kvstore
from kvstore.app import StartError
from kvstore.configuration.config_setting import ConfigError


def test_public_names_are_shown():
    program = "import kvstore; print(*dir(kvstore))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    shown = done.stdout.split()
    assert [name for name in shown if not name.startswith("_")] == sorted(
        name for name in kvstore.__all__ if not name.startswith("_")
    )
    assert {"__version__", "__doc__", "__path__"} <= set(shown)


def test_a_star_import_takes_them():
    names: dict[str, object] = {}
    exec("from kvstore import *", names)  # noqa: S102  the very thing under test
    assert set(kvstore.__all__) <= set(names)


def test_the_errors_of_serve_are_public():
    assert kvstore.ConfigError is ConfigError
    assert kvstore.StartError is StartError


@pytest.mark.asyncio
async def test_they_are_what_serve_raises(tmp_path):
    with pytest.raises(kvstore.ConfigError, match="max-txn-ops"):
        async with kvstore.serve(kvstore.Config(max_txn_ops=0)):
            pytest.fail("it served")
    (tmp_path / "file").write_text("no directory")
    config = kvstore.Config(
        data_dir=tmp_path / "file",
        listen_client_urls="http://127.0.0.1:0",
        listen_peer_urls="http://127.0.0.1:0",
    )
    with pytest.raises(kvstore.StartError):
        async with kvstore.serve(config):
            pytest.fail("it served")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'kvstore' has no attribute 'nothing'"):
        _ = kvstore.nothing
