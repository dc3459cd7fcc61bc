"""`nodelet-cri`: a container runtime that serves CRI v1. `main` is the program, `daemon` joins its parts.

server      the CRI calls               images      pulling, storing, unpacking
runtime     sandboxes and containers    streaming   exec, attach, port-forward
state       facts on disk               network     the CNI chain of a pod
"""
