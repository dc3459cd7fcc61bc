"""AppArmor, swap limited by cgroup v2, WireGuard, NFS, a logind asked for a shutdown: one boot for all."""

from __future__ import annotations

import pytest

from tests.vm import vmkit

pytestmark = pytest.mark.timeout(2400)

PATHS = (
    "tests/root/test_apparmor.py",
    "tests/root/test_swap.py",
    "tests/root/test_wireguard.py",
    "tests/root/test_nfs.py",
    "tests/root/test_logind_shutdown.py",
)
DESELECTED = "--deselect=tests/root/test_wireguard.py::test_a_kernel_without_it_is_told"
EXPORT = "/srv/nfs"
FIRST = f"""
modprobe wireguard
mkdir -p {EXPORT} /etc/nfs.conf.d
chmod 777 {EXPORT}
echo '{EXPORT} 127.0.0.1(rw,no_root_squash,insecure,no_subtree_check,fsid=1)' > /etc/exports
printf '[nfsd]\\ngrace-time=10\\nlease-time=10\\n' > /etc/nfs.conf.d/test.conf
systemctl restart nfs-server
dd if=/dev/zero of=/var/swap bs=1M count=64 status=none
chmod 600 /var/swap
busybox mkswap /var/swap >/dev/null
busybox swapon /var/swap
"""


def test_apparmor_swap_wireguard_nfs_and_shutdown() -> None:
    outcome = vmkit.pytest_inside(
        PATHS,
        "--tb=short",
        DESELECTED,
        first=FIRST,
        NODELET_TEST_MAY_SHUT_DOWN="1",
        NODELET_TEST_NFS_EXPORT=EXPORT,
    )
    print(outcome.output)
    assert outcome.status == 0, outcome.output[-8000:]
    assert " passed" in outcome.output
    assert "skipped" not in outcome.output
