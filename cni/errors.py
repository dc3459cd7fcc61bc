"""The error object of the CNI specification ("Error", section 5 of version 1.1.0) as an exception."""

from __future__ import annotations

from typing import Any

INCOMPATIBLE_VERSION = 1
UNSUPPORTED_FIELD = 2
UNKNOWN_CONTAINER = 3
INVALID_ENVIRONMENT = 4
IO_FAILURE = 5
DECODE_FAILURE = 6
INVALID_CONFIG = 7
TRY_AGAIN_LATER = 11
NOT_AVAILABLE = 50
"""STATUS: the plugin cannot serve ADD now."""
PLUGIN_FAILURE = 100
"""First code that plugins may define: the kernel or a program refused."""
ADDRESSES_EXHAUSTED = 101
"""Every address of the node's pod range is leased to a live pod."""
CHECK_FAILED = 102
"""CHECK: the network of a pod is not as ADD left it."""


class CniError(Exception):
    """A failure as the specification tells it: `code`, `message` for a person, `details` if there are any."""

    def __init__(self, code: int, message: str, details: str = "") -> None:
        super().__init__(f"{message}: {details}" if details else message)
        self.code = code
        self.message = message
        self.details = details

    def to_dict(self, version: str = "1.1.0") -> dict[str, Any]:
        """The error object as printed on stdout."""
        found: dict[str, Any] = {"cniVersion": version, "code": self.code, "msg": self.message}
        if self.details:
            found["details"] = self.details
        return found
