"""CDI: what a vendor's file makes of a device's name, and which files and names are refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_cri_plan import IMAGE, PLACE, config

from cri.runtime.spec import Device, Mount
from cri.server.cdi import ContainerEdits, container_edits, edits_of, parse
from cri.server.container_plan import Labels, container_spec
from host.errors import InputError, Unsupported

ONE = "vendor.com/net=eth0"


def written(devices: dict[str, Any], **fields: Any) -> bytes:
    listed = [{"name": name, "containerEdits": edits} for name, edits in devices.items()]
    return json.dumps({"cdiVersion": "0.6.0", "kind": "vendor.com/net", "devices": listed, **fields}).encode()


def edits(mine: dict[str, Any], **fields: Any) -> ContainerEdits:
    return edits_of([ONE], [[parse(written({"eth0": mine}, **fields), "file")]])


def test_every_edit_that_is_done():
    found = edits(
        {
            "env": ["A=1", "B=x=y"],
            "deviceNodes": [
                {"path": "/dev/one", "hostPath": "/dev/null", "permissions": "r", "type": "c", "major": 1},
                {"path": "/dev/zero"},
            ],
            "mounts": [
                {"hostPath": "/h", "containerPath": "/c", "options": ["ro", "rbind", "nosuid", "rslave"]}
            ],
            "additionalGids": [44],
        },
        containerEdits={"env": ["ALL=1"]},
    )
    assert found.env == (("ALL", "1"), ("A", "1"), ("B", "x=y"))
    assert found.devices == (
        Device(source=Path("/dev/null"), target="/dev/one", access="r"),
        Device(source=Path("/dev/zero"), target="/dev/zero"),
    )
    mount = Mount(source=Path("/h"), target="/c", readonly=True, nosuid=True, propagation="slave")
    assert (found.mounts, found.groups) == ((mount,), (44,))


def test_what_all_devices_need_comes_once_and_a_device_once():
    raw = written({"eth0": {"env": ["E0=1"]}, "eth1": {"env": ["E1=1"]}}, containerEdits={"env": ["ALL=1"]})
    found = edits_of([ONE, "vendor.com/net=eth1", ONE], [[parse(raw, "f")]])
    assert found.env == (("ALL", "1"), ("E0", "1"), ("E1", "1"))


def test_a_later_folder_wins_and_two_files_of_one_do_not_agree(tmp_path):
    first, second = tmp_path / "etc", tmp_path / "run"
    for folder, value in ((first, "1"), (second, "2")):
        folder.mkdir()
        (folder / "a.json").write_bytes(written({"eth0": {"env": [f"A={value}"]}}))
    (second / "note.txt").write_text("{")
    (first / "b.yaml").write_text(
        "cdiVersion: 1.0.0\nkind: vendor.com/gpu\ndevices: [{name: all, containerEdits: {env: [G=1]}}]\n"
    )
    folders = [first, second, tmp_path / "none"]
    assert container_edits([ONE], folders).env == (("A", "2"),)
    assert container_edits(["vendor.com/gpu=all"], folders).env == (("G", "1"),)
    assert container_edits([], folders) == ContainerEdits()
    (second / "c.json").write_bytes(written({"eth0": {}}))
    with pytest.raises(InputError, match="2 files"):
        container_edits([ONE], folders)


@pytest.mark.parametrize(
    "name", ["", "eth0", "net=eth0", "vendor.com/net=", "vendor.com/net=eth9", "../x/y=z"]
)
def test_a_device_that_is_not_known_is_refused_by_name(name):
    with pytest.raises(InputError, match="CDI device"):
        edits_of([name], [[parse(written({"eth0": {}}), "f")]])


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"{",
        b"a: [",
        b"\xff",
        written({"eth0": {"netDevices": []}}),
        written({"eth0": {"intelRdt": {}}}),
        written({"eth0": {"env": "A=1"}}),
        written({"eth0": {"additionalGids": [-1]}}),
        written({"eth0": {"deviceNodes": [{"path": "/dev/x", "uid": 5}]}}),
        written({}, cdiVersion="0.2.0"),
        written({}, cdiVersion="2.0.0"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(raw):
    with pytest.raises(InputError, match="CDI specification /etc/cdi/x"):
        parse(raw, "/etc/cdi/x")


@pytest.mark.parametrize(
    ("mine", "error"),
    [
        ({"hooks": [{"hookName": "createContainer", "path": "/bin/x"}]}, Unsupported),
        ({"mounts": [{"hostPath": "/h", "containerPath": "/c", "type": "tmpfs"}]}, Unsupported),
        ({"mounts": [{"hostPath": "/h", "containerPath": "/c", "options": ["suiddir"]}]}, Unsupported),
        ({"mounts": [{"hostPath": "h", "containerPath": "/c"}]}, InputError),
        ({"env": ["A"]}, InputError),
        ({"env": ["=1"]}, InputError),
        ({"deviceNodes": [{"path": "/dev/x", "permissions": "z"}]}, InputError),
    ],
)
def test_an_edit_that_is_not_done_is_refused(mine, error):
    with pytest.raises(error, match=f"CDI device {ONE}"):
        edits(mine)


def test_edits_become_the_containers():
    mount = Mount(source=Path("/h"), target="/a/b/c")
    device = Device(source=Path("/x"), target="/y")
    added = ContainerEdits(env=(("A", "device"),), mounts=(mount,), devices=(device,), groups=(44,))
    place = replace(PLACE, edits=added)
    made = container_spec(config(), IMAGE, place, seccomp=b"", labels=Labels(), devices=())
    assert dict(made.env)["A"] == "device"
    assert mount in made.mounts
    assert (made.devices, made.user.supplementary) == (added.devices, (44,))
