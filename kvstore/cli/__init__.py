"""The command `kvstore`: a server, a local cluster, and etcdctl's verbs.

The verbs keep what scripts written for etcdctl 3.5 rely on: flags, `ETCDCTL_*` variables,
unique prefixes of commands, output of `-w simple|json|fields|table|protobuf` byte for byte, errors as
`Error: <etcd's text>` on standard error, and exit codes (`kvstore.cli.exit_codes`). A person never sees a
traceback. Here is no logic beyond reading arguments and printing replies.
"""
