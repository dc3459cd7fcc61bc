"""The one error of the runtime that is neither the kernel's (HostError) nor the caller's (InputError)."""

from __future__ import annotations

from host.errors import HostError


class StartFailed(HostError):
    """A container or exec process could not be prepared or executed.

    `step` names the phase (cgroup, rootfs, mount, user, cwd, seccomp, exec); `str()` fits an API status:
    exec "foo": no such file or directory.
    """

    def __init__(self, code: int, message: str, *, step: str) -> None:
        super().__init__(code, message)
        self.step = step
        self.message = message

    def __str__(self) -> str:
        return self.message
