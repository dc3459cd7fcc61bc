"""The CNI runtime: configurations, what plugins are given, results, and failing plugins."""

import json
import os
import stat

import pytest

from cri.network import Network, NetworkError, PodNetwork, parse_conflist, plugin_config, pod_ips
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
    return Network(conf_dir=tmp_path / "net.d", bin_dir=tmp_path / "bin")


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
