"""The configuration of one member: etcd's settings, from flags, variables or a file.

`member_config` holds the settings used here with their rules, `etcd_only_settings` those accepted only for
etcd's sake, `config_setting` the type of both and its readers, `go_values` Go's syntax of values, and
`config_loader` the sources.
"""
