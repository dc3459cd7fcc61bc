"""Settings of the property tests: an example has no deadline of its own, because a busy machine is no bug."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
