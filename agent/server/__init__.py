"""The kubelet API on port 10250 and healthz: routes, who may, logs, streams, statistics.

`server` listens, `routes` is the table, `auth` decides who may, `handlers` answer; the rest are pure
parts and readers below them. What the handlers need from other components are the protocols in `ports`.
"""
