"""The soak ring uses the lab ring's cluster."""

from tests.lab.conftest import cluster, lab, ns

__all__ = ["cluster", "lab", "ns"]
