"""Our version, and the Kubernetes release whose node behaviour we follow."""

from __future__ import annotations

import importlib.metadata

KUBERNETES = "v1.37.0"
"""Shown as the kubelet's version; the version skew policy is checked against it."""


def nodelet() -> str:
    """Our own version, "0.1.0"."""
    return importlib.metadata.version("nodelet")


def kubelet() -> str:
    """What we report as kubeletVersion: the Kubernetes release, and ours as build metadata."""
    return f"{KUBERNETES}+nodelet.{nodelet()}"
