"""Usage messages and metrics out of cgroup figures."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cri.server.metric_table import ALL, BASE_LABELS, CONTAINER, POD, Disk, Sample, metrics
from cri.server.netdev import parse_net_dev
from cri.server.sandbox_metrics import count_descriptors, device_name, max_open_files
from cri.server.usage import WINDOW_NS, Rates, cpu_usage, io_usage, memory_usage, swap_usage, total
from host.cgroups import CgroupStats, Pressure
from host.cgroups.model import DeviceIo, Stall
from proto.cri import runtime_pb2 as pb

BASE = ("pod", "ns", "main", "id", "image")


class TestRates:
    def test_a_rate_needs_two_looks(self) -> None:
        rates = Rates()
        assert rates.nano_cores("/a", 100, WINDOW_NS) is None
        assert rates.nano_cores("/a", 100 + WINDOW_NS, 3 * WINDOW_NS) == 500_000_000
        assert rates.nano_cores("/b", 5, 3 * WINDOW_NS) is None

    def test_looks_close_together_give_the_same_rate(self) -> None:
        rates = Rates()
        rates.nano_cores("/a", 0, 0)
        assert rates.nano_cores("/a", WINDOW_NS, 2 * WINDOW_NS) == 500_000_000
        assert rates.nano_cores("/a", WINDOW_NS + 9, 2 * WINDOW_NS + 9) == 500_000_000
        assert rates.nano_cores("/a", WINDOW_NS, 4 * WINDOW_NS) == 0

    @pytest.mark.parametrize(("usage", "at"), [(10, 9 * WINDOW_NS), (500, WINDOW_NS)])
    def test_counters_and_clocks_that_went_back_begin_anew(self, usage: int, at: int) -> None:
        rates = Rates()
        rates.nano_cores("/a", 100, 5 * WINDOW_NS)
        assert rates.nano_cores("/a", usage, at) is None

    def test_what_was_removed_is_forgotten(self) -> None:
        rates = Rates()
        rates.nano_cores("/a", 0, 0)
        rates.forget("/a")
        rates.forget("/a")
        assert rates.nano_cores("/a", 5, 5 * WINDOW_NS) is None


class TestMessages:
    def test_stalls_are_nanoseconds_and_absent_without_psi(self) -> None:
        pressure = Pressure(some=Stall(avg10=1.5, total_us=7), full=Stall(avg300=0.5))
        stats = CgroupStats(cpu_pressure=pressure, memory_pressure=pressure, io_pressure=pressure)
        for message in (cpu_usage(stats, None, 1), memory_usage(stats, 1), io_usage(stats, 1)):
            assert (message.psi.Some.Total, message.psi.Some.Avg10, message.psi.Full.Avg300) == (
                7000,
                1.5,
                0.5,
            )
        assert not cpu_usage(CgroupStats(), None, 1).HasField("psi")
        assert not io_usage(CgroupStats(), 1).HasField("psi")

    def test_unknown_is_not_zero(self) -> None:
        assert not cpu_usage(CgroupStats(), None, 1).HasField("usage_nano_cores")
        assert cpu_usage(CgroupStats(), 0, 1).HasField("usage_nano_cores")
        assert not memory_usage(CgroupStats(), 1).HasField("available_bytes")
        assert not swap_usage(CgroupStats(), 1).HasField("swap_available_bytes")
        none_allowed = swap_usage(CgroupStats(swap_limit=0), 1)
        assert none_allowed.HasField("swap_available_bytes")

    def test_available_never_falls_below_zero(self) -> None:
        stats = CgroupStats(memory_limit=10, memory_working_set=15, swap_limit=1, swap_usage=5)
        assert memory_usage(stats, 1).available_bytes.value == 0
        assert swap_usage(stats, 1).swap_available_bytes.value == 0


def full_sample() -> Sample:
    return Sample(
        at=5_000_000_000,
        stats=CgroupStats(cpu_usage_ns=3_900_000_000, io=(DeviceIo(major=8, minor=1, read_bytes=7),)),
        started_at=2_000_000_000,
        max_open_files=1024,
        resources=pb.LinuxContainerResources(cpu_period=1, cpu_quota=2, cpu_shares=3),
        disk=Disk(device="/dev/x", used=1, size=2, inodes=3, inodes_free=4),
        links=parse_net_dev("eth0: 1 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0"),
    )


class TestMetrics:
    def test_every_metric_has_one_descriptor_and_a_value_with_all_its_labels(self) -> None:
        names = [figure.name for figure in ALL]
        assert len(names) == len(set(names))
        keys = {figure.name: figure.descriptor.label_keys for figure in ALL}
        found = metrics(ALL, full_sample(), BASE)
        assert {item.name for item in found} == set(names)
        for item in found:
            assert len(item.label_values) == len(keys[item.name])
            assert list(item.label_values[: len(BASE_LABELS)]) == list(BASE)
            assert item.timestamp == 0

    def test_no_two_metrics_are_the_same_series(self) -> None:
        for table in (POD, CONTAINER):
            found = [(item.name, *item.label_values) for item in metrics(table, full_sample(), BASE)]
            assert len(found) == len(set(found))

    def test_values(self) -> None:
        found = {(item.name, *item.label_values[5:]): item for item in metrics(ALL, full_sample(), BASE)}
        assert found["container_cpu_usage_seconds_total",].value.value == 3
        assert found["container_cpu_usage_seconds_total",].metric_type == pb.COUNTER
        assert found["container_start_time_seconds",].value.value == 2
        assert found["container_fs_reads_bytes_total", "8:1"].value.value == 7
        assert found["container_blkio_device_usage_total", "8:1", "8", "1", "Read"].value.value == 7
        assert found["container_network_receive_packets_dropped_total", "eth0"].value.value == 4
        assert found["container_network_transmit_errors_total", "eth0"].value.value == 7

    def test_what_is_not_known_is_left_out(self) -> None:
        names = {item.name for item in metrics(ALL, Sample(at=1, stats=CgroupStats()), BASE)}
        assert "container_fs_usage_bytes" not in names
        assert "container_ulimits_soft" not in names
        assert "container_spec_cpu_quota" not in names
        assert "container_memory_usage_bytes" in names


def test_descriptors_of_processes_are_counted(tmp_path: Path) -> None:
    (tmp_path / "7/fd").mkdir(parents=True)
    os.symlink("socket:[5]", tmp_path / "7/fd/0")
    os.symlink("/dev/null", tmp_path / "7/fd/1")
    assert count_descriptors([7, 8], proc=tmp_path) == (2, 1)


def test_the_limit_of_open_files_is_the_soft_one(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    line = "Max open files            {}                 4096                 files     \n"
    (tmp_path / "7/limits").write_text("Limit x\n" + line.format("1024"))
    assert max_open_files(7, proc=tmp_path) == 1024
    (tmp_path / "7/limits").write_text(line.format("unlimited"))
    assert max_open_files(7, proc=tmp_path) is max_open_files(8, proc=tmp_path) is None


def test_devices_have_names_where_sysfs_has_them(tmp_path: Path) -> None:
    (tmp_path / "dev/block/8:1").mkdir(parents=True)
    (tmp_path / "dev/block/8:1/uevent").write_text("MAJOR=8\nMINOR=1\nDEVNAME=sda1\n")
    assert device_name(8, 1, tmp_path) == "/dev/sda1"
    assert device_name(8, 2, tmp_path) == "8:2"


def test_a_pod_without_a_cgroup_is_the_sum_of_its_containers() -> None:
    one = CgroupStats(cpu_usage_ns=5, memory_usage=100, memory_working_set=60, memory_limit=200, pids=2)
    two = CgroupStats(cpu_usage_ns=7, memory_usage=10, memory_rss=3, pids=1)
    assert total([one, two]) == CgroupStats(
        cpu_usage_ns=12, memory_usage=110, memory_working_set=60, memory_rss=3, pids=3
    )
    assert total([one]) is one
    assert total([]) == CgroupStats()
