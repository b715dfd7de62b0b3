"""The version of this package, and the etcd version that it announces."""

from __future__ import annotations

__version__ = "0.1.0"

ETCD_VERSION = "3.5.21"
"""Reported wherever etcd reports its version: clients choose features by it, so no suffix."""

ETCD_CLUSTER_VERSION = "3.5.0"
"""Reported as `etcdcluster`: major and minor of `ETCD_VERSION`."""
