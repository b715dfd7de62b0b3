"""One member around its replica: how it starts, joins, recovers and changes the cluster, and how it reports.

`local_member` is the member as the services above see it. `data_directory` opens its data: bootstrapped
(`initial_cluster`), joined (`joining`) or recovered (`disaster_recovery`); `url_matching` compares the URLs
of members. Nothing here knows generated
messages, gRPC or HTTP, and nothing awaits on the path of a request.
"""
