"""`python -m kvstore.devcluster`: the commands without the rest of the command line."""

from kvstore.devcluster.cluster_command import cluster

if __name__ == "__main__":
    cluster(prog_name="cluster.py")
