"""docs/configuration.md says what the table of settings says."""

import subprocess
import sys
from pathlib import Path

from kvstore.configuration.member_config import SETTINGS

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_fresh_and_names_every_setting():
    check = [sys.executable, str(ROOT / "tools" / "configuration.py"), "--check"]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (ROOT / "docs" / "configuration.md").read_text()
    assert all(f"`{row.name}`" in page for row in SETTINGS)
