"""`nodelet`: what a kubelet and a kube-proxy do on a node, and the overlay's peers.

`main` is the program, `startup` checks and prepares what it needs, `assembly` puts the components together.
Not in here: containers (`cri`, met over the CRI socket only) and pod interfaces (`cni`).
"""
