"""The CNI runtime: configurations, what plugins are given, results, and failing plugins."""

import json
import os
import stat

import pytest

from cri.network import (
    Network,
    NetworkError,
    PodNetwork,
    bandwidth,
    parse_conflist,
    plugin_config,
    pod_ips,
)
from host.errors import InputError

POD = PodNetwork(
    sandbox_id="ab",
    netns="/run/netns/cni-ab",
    namespace="ns",
    name="pod",
    uid="u",
    port_mappings=({"hostPort": 80},),
)


def conflist(*types: str, **fields) -> bytes:
    return json.dumps(
        {"name": "n", "cniVersion": "1.0.0", "plugins": [{"type": t} for t in types], **fields}
    ).encode()


@pytest.fixture
def network(tmp_path) -> Network:
    (tmp_path / "net.d").mkdir()
    (tmp_path / "bin").mkdir()
    clock = FakeClock()
    found = Network(conf_dir=tmp_path / "net.d", bin_dir=tmp_path / "bin", monotonic=clock, plugin_seconds=5)
    found.clock = clock
    return found


class FakeClock:
    """Stands still until it is set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def plugin(tmp_path, name: str, script: str) -> None:
    path = tmp_path / "bin" / name
    path.write_text("#!/bin/sh\n" + script)
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"{", "not JSON"),
        (b"[]", "JSON object"),
        (b'{"plugins": [{"type": "a"}], "cniVersion": "1.0.0"}', "name"),
        (b'{"name": "n", "cniVersion": "1.0.0", "plugins": []}', "at least one"),
        (conflist("../../sbin/reboot"), "plain file name"),
        (conflist(".hidden"), "plain file name"),
        (b'{"name": "n", "cniVersion": 1, "plugins": [{"type": "a"}]}', "cniVersion"),
        (b"[" * 100_000, "not JSON"),
        (b" " * ((1 << 20) + 1), "larger than"),
        (
            b'{"name": "n", "cniVersion": "1.0.0", "plugins": [{"type": "a", "capabilities": 1}]}',
            "capabilities",
        ),
    ],
)
def test_a_bad_configuration_is_refused_with_its_fault(raw, words):
    with pytest.raises(InputError, match=words):
        parse_conflist(raw, "file")


def test_a_single_plugin_is_a_list_of_one():
    parsed = parse_conflist(b'{"name": "n", "cniVersion": "0.4.0", "type": "bridge"}', "file")
    assert [item["type"] for item in parsed["plugins"]] == ["bridge"]


def test_a_plugin_gets_the_capabilities_it_asks_for():
    config = json.loads(conflist("portmap"))
    one = {"type": "portmap", "capabilities": {"portMappings": True, "bandwidth": True}, "x": 1}
    derived = plugin_config(config, one, capabilities=POD.capabilities, previous={"ips": []})
    assert derived == {
        "type": "portmap",
        "x": 1,
        "name": "n",
        "cniVersion": "1.0.0",
        "runtimeConfig": {"portMappings": [{"hostPort": 80}]},
        "prevResult": {"ips": []},
    }


def test_the_pods_addresses_are_those_of_its_own_interface():
    result = {
        "interfaces": [
            {"name": "cbr0"},
            {"name": "eth0", "sandbox": "/x"},
            {"name": "net1", "sandbox": "/x"},
        ],
        "ips": [
            {"address": "10.0.0.1/24", "interface": 0},
            {"address": "10.0.0.5/24", "interface": 1},
            {"address": "fd00::5/64", "interface": 1},
            {"address": "10.9.0.5/24", "interface": 2},
        ],
    }
    assert pod_ips(result) == ["10.0.0.5", "fd00::5"]
    assert pod_ips({"ips": [{"address": "10.0.0.7/24"}]}) == ["10.0.0.7"]
    assert pod_ips({}) == []


def test_the_first_file_by_name_is_in_force_and_changes_are_seen(network, tmp_path):
    with pytest.raises(NetworkError, match="cni config uninitialized"):
        network.conflist()
    (tmp_path / "net.d" / "20-b.conflist").write_bytes(conflist("b", name="second"))
    assert network.conflist()["name"] == "second"
    (tmp_path / "net.d" / "10-a.conflist").write_bytes(conflist("a", name="first"))
    (tmp_path / "net.d" / "00-notes.txt").write_text("not a configuration")
    assert network.conflist()["name"] == "first"
    (tmp_path / "net.d" / "new").write_bytes(conflist("a", name="changed"))
    os.replace(tmp_path / "net.d" / "new", tmp_path / "net.d" / "10-a.conflist")
    assert network.conflist()["name"] == "changed"


async def test_plugins_run_in_order_and_are_undone_backwards(network, tmp_path):
    record = f'echo "$CNI_COMMAND $0 $CNI_CONTAINERID $CNI_NETNS $CNI_IFNAME" >>{tmp_path}/calls\n'
    record += f"cat >{tmp_path}/stdin-$(basename $0)-$CNI_COMMAND\n"
    plugin(tmp_path, "one", record + """echo '{"ips": [{"address": "10.0.0.2/24"}]}'""")
    plugin(tmp_path, "two", record + """echo '{"ips": [{"address": "10.0.0.3/24"}]}'""")
    config = parse_conflist(conflist("one", "two"), "file")
    result = await network.add(config, POD)
    assert pod_ips(result) == ["10.0.0.3"]
    await network.delete(config, POD, result)
    calls = [line.split() for line in (tmp_path / "calls").read_text().splitlines()]
    assert [(call[0], call[1].rsplit("/", 1)[1]) for call in calls] == [
        ("ADD", "one"),
        ("ADD", "two"),
        ("DEL", "two"),
        ("DEL", "one"),
    ]
    assert calls[0][2:] == ["ab", "/run/netns/cni-ab", "eth0"]
    assert "prevResult" not in json.loads((tmp_path / "stdin-one-ADD").read_text())
    assert (
        json.loads((tmp_path / "stdin-two-ADD").read_text())["prevResult"]["ips"][0]["address"]
        == "10.0.0.2/24"
    )
    assert json.loads((tmp_path / "stdin-one-DEL").read_text())["prevResult"] == result


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (
            """echo '{"code": 7, "msg": "no room", "details": "pool empty"}'; exit 1""",
            "exited with 1: no room: pool empty",
        ),
        ("echo broken >&2; exit 3", "exited with 3: broken"),
        ("echo junk", "did not print a JSON object"),
        ("echo '[]'", "did not print a JSON object"),
        ("echo '{}'", "gave pod ns/pod no address"),
    ],
)
async def test_a_failing_plugin_is_named(network, tmp_path, script, words):
    plugin(tmp_path, "bad", script)
    with pytest.raises(NetworkError, match=words):
        await network.add(parse_conflist(conflist("bad"), "file"), POD)


async def test_a_plugin_that_others_can_write_is_not_run(network, tmp_path):
    plugin(tmp_path, "open", "echo '{}'")
    (tmp_path / "bin" / "open").chmod(0o777)
    with pytest.raises(NetworkError, match="only root can write"):
        await network.add(parse_conflist(conflist("open"), "file"), POD)
    with pytest.raises(NetworkError, match="not found"):
        await network.add(parse_conflist(conflist("none"), "file"), POD)
    assert stat.S_IMODE((tmp_path / "bin" / "open").stat().st_mode) == 0o777


async def test_garbage_is_collected_only_by_plugins_that_know_how(network, tmp_path):
    plugin(tmp_path, "gc", f"cat >{tmp_path}/gc; echo '{{}}'")
    await network.collect(parse_conflist(conflist("gc"), "file"), ["ab"])
    assert not (tmp_path / "gc").exists()
    await network.collect(parse_conflist(conflist("gc", cniVersion="1.1.0"), "file"), ["ab"])
    sent = json.loads((tmp_path / "gc").read_text())
    assert sent["cni.dev/valid-attachments"] == [{"containerID": "ab", "ifname": "eth0"}]


@pytest.mark.parametrize(
    ("versions", "chosen"),
    [
        ({"cniVersion": "1.0.0", "cniVersions": ["0.3.1", "1.0.0", "1.1.0"]}, "1.1.0"),
        ({"cniVersion": "1.0.0", "cniVersions": ["9.0.0", "0.4.0"]}, "1.0.0"),
        ({"cniVersion": "0.4.0"}, "0.4.0"),
    ],
)
def test_the_highest_version_that_both_sides_speak_is_used(versions, chosen):
    """GC, which gives lost addresses back, exists since 1.1.0 only."""
    raw = json.dumps({"name": "n", "plugins": [{"type": "x"}], **versions}).encode()
    assert parse_conflist(raw, "file")["cniVersion"] == chosen


def test_versions_that_are_no_list_are_refused():
    with pytest.raises(InputError, match="file: cniVersions must be a list of strings"):
        parse_conflist(b'{"name":"n","cniVersion":"1.0.0","cniVersions":3,"plugins":[{"type":"x"}]}', "file")


def test_hidden_files_folders_and_other_names_do_not_count(network, tmp_path):
    folder = tmp_path / "net.d"
    (folder / "00-folder.conf").mkdir()
    (folder / ".00-half.conflist").write_bytes(b"{")
    (folder / "00-old.conflist.disabled").write_bytes(b"{")
    (folder / "10-a.json").write_bytes(b'{"name": "json", "cniVersion": "1.0.0", "type": "bridge"}')
    assert network.conflist()["name"] == "json"
    (folder / "05-broken.conf").write_bytes(b"{")
    with pytest.raises(NetworkError, match=r"uninitialized: .*05-broken.conf is not JSON"):
        network.conflist()


async def test_a_hanging_plugin_is_killed_and_named_with_its_time(tmp_path):
    (tmp_path / "bin").mkdir()
    plugin(tmp_path, "slow", "sleep 1000")
    network = Network(conf_dir=tmp_path, bin_dir=tmp_path / "bin", plugin_seconds=0.2)
    with pytest.raises(NetworkError, match=r"cni plugin slow ADD: killed after 0\.2 s"):
        await network.add(parse_conflist(conflist("slow"), "file"), POD)


async def test_endless_junk_is_not_collected(network, tmp_path):
    plugin(tmp_path, "junk", "exec yes")
    with pytest.raises(NetworkError, match=r"cni plugin junk ADD: .*printed more than"):
        await network.add(parse_conflist(conflist("junk"), "file"), POD)


async def test_all_plugins_have_their_turn_at_gc(network, tmp_path):
    plugin(tmp_path, "bad", "exit 1")
    plugin(tmp_path, "good", f"cat >{tmp_path}/gc")
    config = parse_conflist(conflist("bad", "good", cniVersion="1.1.0"), "file")
    with pytest.raises(NetworkError, match="cni plugin bad GC exited with 1: no reason given"):
        await network.collect(config, [])
    sent = json.loads((tmp_path / "gc").read_text())
    assert (sent["cni.dev/valid-attachments"], sent["cni.dev/attachments"]) == ([], [])
    (tmp_path / "gc").unlink()
    await network.collect({**config, "disableGC": True}, [])
    assert not (tmp_path / "gc").exists()


async def test_a_good_state_is_believed_for_a_while_and_a_bad_one_never(network, tmp_path):
    plugin(tmp_path, "one", f"echo $CNI_COMMAND >>{tmp_path}/calls; [ ! -e {tmp_path}/bad ]")

    async def asked() -> int:
        await network.status()
        return len((tmp_path / "calls").read_text().split())

    (tmp_path / "net.d" / "10.conflist").write_bytes(conflist("one", cniVersion="1.1.0"))
    assert [await asked(), await asked()] == [1, 1]
    network.clock.now += 11
    (tmp_path / "bad").touch()
    for _ in range(2):
        with pytest.raises(NetworkError, match="cni plugin one STATUS exited with 1"):
            await network.status()
    (tmp_path / "bad").unlink()
    assert await asked() == 4
    (tmp_path / "net.d" / "05.conflist").write_bytes(conflist("one", cniVersion="1.0.0"))
    assert await asked() == 4, "STATUS exists since 1.1.0"


@pytest.mark.parametrize(
    ("text", "rate"),
    [("1k", 1000), ("10M", 10**7), ("1.5M", 1_500_000), ("1Mi", 1 << 20), ("1P", 10**15), ("2e6", 2 * 10**6)],
)
def test_bandwidth_annotations(text, rate):
    found = bandwidth({"kubernetes.io/egress-bandwidth": text, "other": "x"})
    assert found == {"egressRate": rate, "egressBurst": max(rate // 10, 1 << 20)}
    assert bandwidth({}) == {}


@pytest.mark.parametrize("text", ["", "999", "0", "-1M", "1MB", "1e99", "\u0661k", "2P", "1 M", "9" * 30])
def test_bandwidth_that_makes_no_sense_is_refused(text):
    with pytest.raises(InputError, match="annotation kubernetes"):
        bandwidth({"kubernetes.io/ingress-bandwidth": text})
