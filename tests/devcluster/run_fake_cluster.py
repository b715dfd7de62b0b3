"""`cluster.py up --foreground --free-ports`, with stand-ins for members: DIRECTORY [SERVER FLAGS]."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from pathlib import Path

from kvstore.devcluster import session
from kvstore.devcluster.display import best_display
from kvstore.devcluster.plan import ClusterError, prepare

FAKE_NODE = str(Path(__file__).with_name("fake_node.py"))

if __name__ == "__main__":
    made = prepare(Path(sys.argv[1]), nodes=3, free=True, server_arguments=tuple(sys.argv[2:]))
    try:
        asyncio.run(session.run(replace(made, python_arguments=(FAKE_NODE,)), best_display()))
    except ClusterError as error:
        sys.exit(f"Error: {error}")
