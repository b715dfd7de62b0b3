"""The local cluster: `python cluster.py up --foreground`, then `python cluster.py kill leader`.

A thin launcher over `kvstore.devcluster`, for a checkout; `kvstore cluster` is the same.
"""

from kvstore.devcluster.cluster_command import cluster

if __name__ == "__main__":
    cluster(prog_name="cluster.py")
