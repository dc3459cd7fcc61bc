"""Reverse path filter: only what is strict in effect is loosened."""

import pytest

from agent.overlay import sysctl


@pytest.mark.parametrize(
    ("for_all", "for_device", "after", "changed"),
    [
        ("0", "0", "0", []),
        ("1", "0", "2", ["eth0"]),
        ("0", "1", "2", ["eth0"]),
        ("2", "1", "1", []),
        ("1", "2", "2", []),
    ],
)
def test_loosen(tmp_path, for_all, for_device, after, changed):
    conf = tmp_path / "net/ipv4/conf"
    for name, value in (("all", for_all), ("eth0", for_device)):
        (conf / name).mkdir(parents=True)
        (conf / name / "rp_filter").write_text(value + "\n")
    assert sysctl.loosen_reverse_path(["eth0"], tmp_path) == changed
    assert (conf / "eth0" / "rp_filter").read_text().strip() == after


def test_kernel_without_ipv6(tmp_path):
    sysctl.disable_ipv6("flannel.1", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("before", "after"), [("1", "2"), ("0", "0"), ("2", "2")])
def test_who_hears_routers_goes_on(tmp_path, before, after):
    path = tmp_path / "net/ipv6/conf/eth0/accept_ra"
    path.parent.mkdir(parents=True)
    path.write_text(before + "\n")
    assert sysctl.keep_hearing_routers("eth0", tmp_path) is (before != after)
    assert path.read_text().strip() == after
    assert not sysctl.keep_hearing_routers("no-ipv6", tmp_path)
