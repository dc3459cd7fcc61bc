"""Virtual addresses of Services, made real by rules in the kernel. `ServiceProxy` is the way in.

picture    Service and EndpointSlice objects → facts about virtual ports (pure)
rules      one virtual port → iptables rules, with kube-proxy's chain names (pure)
diff       rules wanted and rules present → the smallest transactions (pure)
iptables   applies transactions, notices drift
conntrack  UDP flows that still lead to endpoints that are gone
health     answers on healthCheckNodePorts
metrics    counts and durations of syncs, under kube-proxy's names
proxy      the component: events → what changed → sync
"""
