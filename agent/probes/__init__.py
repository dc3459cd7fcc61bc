"""Startup, readiness and liveness probes. `ProbeManager` is the way in."""
