"""The wire messages of the etcd v3 API and of gRPC health, generated from `proto/kvstore/wire/`.

Never edited by hand: `tools/genproto.py` makes the modules, and its `--check` verifies that they are fresh.
Message, package and field names are etcd's, capitals included, because clients see them.
The messages live in a descriptor pool of their own, so that any other etcd client library can be
imported into the same process. Messages here hold no behaviour and no module here imports gRPC.
"""
