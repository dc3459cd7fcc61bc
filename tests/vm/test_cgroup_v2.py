"""The runtime's root tests where cgroup v2 is alone and systemd is process 1."""

from __future__ import annotations

import pytest

from tests.vm import vmkit

pytestmark = pytest.mark.timeout(2400)


@pytest.mark.parametrize(
    "paths",
    [
        ("tests/root/test_cri_cgroups.py", "tests/root/test_cgroup_devices.py"),
        ("tests/root/test_runtime.py", "tests/root/test_runtime_birth.py"),
        ("tests/root/test_cri_pods.py",),
    ],
    ids=["cgroups", "runtime", "pods"],
)
def test_root_tests_pass(paths: tuple[str, ...]) -> None:
    outcome = vmkit.pytest_inside(paths, "--tb=short")
    print(outcome.output)
    assert outcome.status == 0, outcome.output[-8000:]
    assert " passed" in outcome.output
