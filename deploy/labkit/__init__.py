"""The code behind `deploy/lab`: a cluster of network namespaces on one machine, with a real control plane.

`cli` and `bootstrap` need the standard library only; `lab` is the way in for everything else, tests too.
"""
