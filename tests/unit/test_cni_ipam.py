"""Leases: the pure choice, and the folder as a state machine against a model."""

import ipaddress
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cni import ipam, usage
from cni.config import Attachment
from cni.ipam import Lease, Leases

NET = ipaddress.ip_network("10.244.1.0/29")  # .2 to .6 for pods
OWNERS = [Attachment(f"c{number}", "eth0") for number in range(8)]


def ip(last):
    return ipaddress.ip_address(f"10.244.1.{last}")


@pytest.mark.parametrize(
    ("taken", "last", "expected"),
    [
        ((), None, 2),
        ((2,), None, 3),
        ((), 2, 3),
        ((), 6, 2),
        ((2, 3), 6, 4),
        ((2, 3, 4, 5), 3, 6),
        ((2, 3, 4, 5, 6), 3, None),
        ((1, 0, 7), 5, 6),
        ((), 200, None),
    ],
)
def test_choice(taken, last, expected):
    found = ipam.choose(NET, [ip(t) for t in taken], None if last is None else ip(last))
    if last == 200:
        assert found in NET, "a hint from another range only moves the start"
    else:
        assert found == (None if expected is None else ip(expected))


@given(st.sets(st.integers(0, 7)), st.one_of(st.none(), st.integers(0, 255)))
def test_choice_is_free_and_usable(taken, last):
    found = ipam.choose(NET, [ip(t) for t in taken], None if last is None else ip(last))
    free = {2, 3, 4, 5, 6} - taken
    assert (found is None) == (not free)
    assert found is None or int(found) & 0xFF in free


def test_large_ipv6_range():
    net = ipaddress.ip_network("fd00::/64")
    taken = {net.network_address + number for number in range(2, 100)}
    assert ipam.choose(net, taken, None) == net.network_address + 100


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("10.0.0.1,c1,eth0", Lease(ipaddress.ip_address("10.0.0.1"), Attachment("c1", "eth0"))),
        ("fd00::2,c1,eth0", Lease(ipaddress.ip_address("fd00::2"), Attachment("c1", "eth0"))),
        ("10.0.0.1", Lease(ipaddress.ip_address("10.0.0.1"), None)),
        ("10.0.0.1,c1", Lease(ipaddress.ip_address("10.0.0.1"), None)),
        ("garbage", None),
        ("", None),
    ],
)
def test_names_of_leases(name, expected):
    found = ipam.parse_lease(name)
    assert found == expected
    assert found is None or found.file_name == name


@given(st.text(max_size=60))
def test_any_name_parses_or_not(name):
    ipam.parse_lease(name)


def leases_in(path, **more):
    return Leases(path / "net", boot_id="boot-1", **more)


def test_same_owner_same_address(tmp_path):
    leases = leases_in(tmp_path)
    first = leases.allocate(OWNERS[0], [NET])
    assert leases.allocate(OWNERS[0], [NET]) == first
    assert leases.allocate(OWNERS[1], [NET]) != first


def test_an_address_rests_before_it_is_used_again(tmp_path):
    leases = leases_in(tmp_path)
    seen = []
    for _ in range(7):
        (address,) = leases.allocate(OWNERS[0], [NET])
        seen.append(int(address.ip) & 0xFF)
        leases.release(OWNERS[0])
    assert seen == [2, 3, 4, 5, 6, 2, 3]


def test_all_or_nothing_over_two_ranges(tmp_path):
    leases = leases_in(tmp_path)
    tiny = ipaddress.ip_network("fd00::/126")
    assert leases.allocate(OWNERS[0], [NET, tiny]) is not None
    assert leases.allocate(OWNERS[1], [NET, tiny]) is not None
    assert leases.allocate(OWNERS[2], [NET, tiny]) is None
    assert {lease.owner for lease in leases.listed()} == {OWNERS[0], OWNERS[1]}


def test_used_up_range_takes_back_what_has_no_devices(tmp_path):
    clock = [1e12]
    leases = leases_in(tmp_path, now=lambda: clock[0])
    for owner in OWNERS[:5]:
        leases.allocate(owner, [NET])
    live = set(OWNERS[1:5])
    (found,) = leases.allocate(OWNERS[6], [NET], is_live=lambda owner: owner in live)
    assert found.ip == ip(2)
    assert leases.allocate(OWNERS[7], [NET], is_live=lambda owner: owner in {*live, OWNERS[6]}) is None


def test_young_leases_are_not_taken_back(tmp_path):
    leases = leases_in(tmp_path)
    for owner in OWNERS[:5]:
        leases.allocate(owner, [NET])
    assert leases.allocate(OWNERS[6], [NET], is_live=lambda owner: False) is None


def test_unreadable_lease_stays_taken_until_gc(tmp_path):
    leases = leases_in(tmp_path)
    leases.allocate(OWNERS[0], [NET])
    (tmp_path / "net" / "leases" / "10.244.1.3").touch()
    (address,) = leases.allocate(OWNERS[1], [NET])
    assert address.ip == ip(4)
    leases.keep_only({OWNERS[0], OWNERS[1]})
    assert [int(lease.address) & 0xFF for lease in leases.listed()] == [2, 4]


@pytest.mark.parametrize("cursor", ["", "\0\0", "10.244.9.9", "nonsense", "fd00::1"])
def test_cursor_is_only_a_hint(tmp_path, cursor):
    leases = leases_in(tmp_path)
    leases.allocate(OWNERS[0], [NET])
    (tmp_path / "net" / "last-4").write_text(cursor)
    (address,) = leases.allocate(OWNERS[1], [NET])
    assert address.ip in NET and address.ip != ip(2)


def test_new_boot_voids_all(tmp_path):
    leases_in(tmp_path).allocate(OWNERS[0], [NET])
    after = Leases(tmp_path / "net", boot_id="boot-2")
    assert after.listed() == []


def test_new_folder_adopts_what_the_kernel_shows(tmp_path):
    running = Lease(ip(2), OWNERS[0])
    (address,) = leases_in(tmp_path).allocate(OWNERS[1], [NET], adopt=lambda: [running])
    assert address.ip == ip(3)
    assert leases_in(tmp_path).listed() == [running, Lease(ip(3), OWNERS[1])]


def test_release_of_nobody(tmp_path):
    assert leases_in(tmp_path).release(OWNERS[0]) == []


class LeaseMachine(RuleBasedStateMachine):
    """ADD, DEL, GC and restarts in any order; the model is a dict from owner to address."""

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.model = {}
        self.leases = leases_in(self.folder)

    @rule(owner=st.sampled_from(OWNERS))
    def add(self, owner):
        found = self.leases.allocate(owner, [NET])
        if owner in self.model:
            assert found[0].ip == self.model[owner]
        elif len(self.model) == 5:
            assert found is None
        else:
            assert found[0].ip not in self.model.values()
            self.model[owner] = found[0].ip

    @rule(owner=st.sampled_from(OWNERS))
    def delete(self, owner):
        assert self.leases.release(owner) == ([self.model.pop(owner)] if owner in self.model else [])

    @rule(valid=st.sets(st.sampled_from(OWNERS)))
    def collect(self, valid):
        self.leases.keep_only(valid)
        self.model = {owner: address for owner, address in self.model.items() if owner in valid}

    @rule()
    def restart(self):
        self.leases = leases_in(self.folder)

    @invariant()
    def disk_equals_model(self):
        assert {lease.owner: lease.address for lease in self.leases.listed()} == self.model

    def teardown(self):
        shutil.rmtree(self.folder)


TestLeaseMachine = LeaseMachine.TestCase
TestLeaseMachine.settings = settings(
    max_examples=30, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_usage_of_ranges_is_read_from_the_folder(tmp_path: Path) -> None:
    ranges = [ipaddress.ip_network("10.1.0.0/29"), ipaddress.ip_network("fd00::/64")]
    assert [(one.leased, one.free) for one in usage.read(tmp_path, ranges)] == [(0, 5), (0, 2**64 - 2)]
    leases = Leases(tmp_path, boot_id="b")
    for name in "abcde":
        assert leases.allocate(Attachment(name, "eth0"), ranges)
    assert leases.allocate(Attachment("f", "eth0"), ranges) is None
    assert [(one.leased, one.free) for one in usage.read(tmp_path, ranges)] == [(5, 0), (5, 2**64 - 7)]
