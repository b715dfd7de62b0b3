"""A local cluster of real processes, and its faults: `cluster.py` and `kvstore cluster`.

The contract. A `ClusterPlan` says what runs where and lives in a state directory (`.cluster/`)
beside the members' data and logs. A `Supervisor` starts the members as child processes, detects
when they end, and is the only one that signals them. Unless told otherwise it also stands between
them: every member advertises a peer address at which the supervisor's TCP proxy listens, so that
partitions need no privileges. The proxy identifies the dialler by the process that holds the socket; it
makes a partition by silence and passes the end of a process on as an end.

Other processes steer a running supervisor through its control port (`control`), which is what the
commands do. Everything is stopped together: members never outlive a supervisor that is asked to stop.
"""

from kvstore.devcluster.plan import ClusterError, ClusterPlan, NodePlan, free_ports
from kvstore.devcluster.supervisor import Supervisor

__all__ = ["ClusterError", "ClusterPlan", "NodePlan", "Supervisor", "free_ports"]
