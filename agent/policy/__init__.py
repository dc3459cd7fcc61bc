"""NetworkPolicy v1, made real by one nftables table. `PolicyAgent` is the way in.

objects    the few fields of Pods and Namespaces that policies look at
selectors  label selectors as hashable values (pure)
model      a NetworkPolicy object → whom it isolates and what it allows (pure)
rules      what is allowed → nft rules; the chains every packet starts in (pure)
picture    pods, namespaces, policies → what the table shall hold, kept up change by change (pure)
yielding   signs of another policy agent on this node
kernel     writes the table, notices drift
metrics    what was written, how long it took, how often somebody else changed it
verdict    what the written rules say of one connection (pure)
component  the component: events → what changed → sync; `ready` for pods about to start
"""
