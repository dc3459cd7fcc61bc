"""The systemd cgroup driver where systemd is process 1: all of it in one boot."""

from __future__ import annotations

import pytest

from tests.vm import vmkit

pytestmark = pytest.mark.timeout(2400)

PATHS = (
    "tests/contract/test_systemd.py",
    "tests/root/test_systemd_driver.py",
    "tests/root/test_cri_cgroups.py",
)


def test_pods_in_slices_and_scopes() -> None:
    outcome = vmkit.pytest_inside(PATHS, "--tb=short", NODELET_TEST_CGROUP_DRIVER="systemd")
    print(outcome.output)
    assert outcome.status == 0, outcome.output[-8000:]
    assert " passed" in outcome.output
