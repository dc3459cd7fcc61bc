"""User namespaces and ID-mapped mounts: what is asked for, what is refused by name, what becomes of it."""

from pathlib import Path

import pytest
from test_cri_plan import PLACE, config

from cri.runtime import idmaps, messages, wire
from cri.runtime.spec import ContainerSpec, IdMaps, IdRange, Mount, SandboxSpec
from cri.server.container_plan import mounts_of
from cri.server.sandbox_plan import sandbox_spec
from cri.server.user_namespaces import check_container, mount_maps, user_namespace
from host.errors import InputError
from proto.cri import runtime_pb2 as pb

FULL = 2**32 - 1


def mapping(container: int = 0, host: int = 65536, length: int = 65536) -> pb.IDMapping:
    return pb.IDMapping(container_id=container, host_id=host, length=length)


def options(mode: int = pb.POD, uids=None, gids=None, **fields) -> pb.NamespaceOption:
    """By default what a kubelet sends for hostUsers: false."""
    one = [mapping()]
    asked = pb.UserNamespace(
        mode=mode, uids=one if uids is None else uids, gids=one if gids is None else gids
    )
    return pb.NamespaceOption(userns_options=asked, **fields)


def maps(outside: int = 65536, length: int = 65536) -> IdMaps:
    span = (IdRange(inside=0, outside=outside, length=length),)
    return IdMaps(uids=span, gids=span)


def spec_of(asked: pb.NamespaceOption) -> SandboxSpec:
    made = pb.PodSandboxConfig(metadata=pb.PodSandboxMetadata(name="a", namespace="b", uid="c"))
    made.linux.security_context.namespace_options.CopyFrom(asked)
    return sandbox_spec(made, sandbox_id="ab", netns_dir=Path("/n"), node_name="node")


def test_what_is_asked_for():
    assert user_namespace(pb.NamespaceOption()) is None
    assert user_namespace(options(pb.NODE, [], [])) is None
    found = user_namespace(options(gids=[mapping(host=200000, length=1)]))
    assert found == IdMaps(uids=maps().uids, gids=maps(200000, 1).gids)
    assert spec_of(options()).user_namespace == maps()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (options(pb.CONTAINER), "mode CONTAINER is not possible"),
        (options(pb.TARGET), "mode TARGET is not possible"),
        (options(pb.NODE), "mode NODE has no uids and gids"),
        (options(pb.NODE, [], [mapping()]), "mode NODE has no uids and gids"),
        (options(uids=[]), "uids has 0 mappings: exactly one"),
        (options(gids=[]), "gids has 0 mappings: exactly one"),
        (options(uids=[mapping(), mapping(70000, 200000)]), "uids has 2 mappings: exactly one"),
        (options(gids=[mapping(), mapping(70000, 200000)]), "gids has 2 mappings: exactly one"),
        (options(uids=[mapping(container=1)]), "uids: container_id must be 0"),
        (options(gids=[mapping(container=1)]), "gids: container_id must be 0"),
        (options(uids=[mapping(length=0)]), "uid map has a range of length 0"),
        (options(gids=[mapping(host=FULL - 5, length=5)]), None),
        (options(gids=[mapping(host=FULL - 5, length=6)]), "gid map has a range that ends beyond"),
        (options(network=pb.NODE), "network NODE: a user namespace"),
        (options(pid=pb.NODE), "pid NODE: a user namespace"),
        (options(ipc=pb.NODE), "ipc NODE: a user namespace"),
    ],
)
def test_a_sandbox_is_refused_by_name(asked, words):
    if words is None:
        spec_of(asked)
        return
    with pytest.raises(InputError, match=words) as caught:
        spec_of(asked)
    assert "namespace_options" in str(caught.value)


@pytest.mark.parametrize(
    ("container", "sandbox", "fits"),
    [
        (options(), options(), True),
        (pb.NamespaceOption(), options(pb.NODE, [], []), True),
        (pb.NamespaceOption(), options(), False),
        (options(), pb.NamespaceOption(), False),
        (options(pb.NODE, [], []), options(), False),
        (options(uids=[mapping(host=131072)]), options(), False),
        (options(gids=[mapping(length=65535)]), options(), False),
        (options(pid=pb.NODE), options(), False),
    ],
)
def test_a_container_has_its_pods_maps(container, sandbox, fits):
    if fits:
        check_container(container, sandbox)
        return
    with pytest.raises(InputError, match="userns_options"):
        check_container(container, sandbox)


class TestMounts:
    def mount(self, **fields) -> pb.Mount:
        return pb.Mount(container_path="/data", host_path="/vol", **fields)

    def test_maps_of_a_mount(self):
        assert mount_maps(self.mount(), maps()) is None
        other = [mapping(5, 7, 1), mapping(8, 100, 2)]
        found = mount_maps(self.mount(uidMappings=other, gidMappings=[mapping()]), None)
        assert found is not None
        assert [(each.inside, each.outside, each.length) for each in found.uids] == [(5, 7, 1), (8, 100, 2)]

    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({"uidMappings": [mapping()]}, "only one of uidMappings and gidMappings"),
            ({"gidMappings": [mapping()]}, "only one of uidMappings and gidMappings"),
            (
                {"uidMappings": [mapping(length=0)], "gidMappings": [mapping()]},
                "uid map has a range of length 0",
            ),
            ({"uidMappings": [mapping()], "gidMappings": [mapping(host=FULL)]}, "gid map .* ends beyond"),
            ({"uidMappings": [mapping()] * 2, "gidMappings": [mapping()]}, "same id inside"),
            (
                {"uidMappings": [mapping(), mapping(70000)], "gidMappings": [mapping()]},
                "uid map has two ranges with the same id outside",
            ),
            (
                {
                    "uidMappings": [mapping(host=1)],
                    "gidMappings": [mapping()],
                    "image": pb.ImageSpec(image="i"),
                },
                "must be those of the pod",
            ),
        ],
    )
    def test_refused_by_name(self, fields, words):
        with pytest.raises(InputError, match=words) as caught:
            mount_maps(self.mount(**fields), maps())
        assert "mounts: /data" in str(caught.value)

    def test_what_the_runtime_makes_is_roots(self):
        place = PLACE.__class__(
            **(vars(PLACE) | {"user_namespace": maps(), "volumes": ((Path("/v"), "/own"),)})
        )
        mapped = self.mount(uidMappings=[mapping(host=9)], gidMappings=[mapping(host=9)])
        image = pb.Mount(
            container_path="/image",
            image=pb.ImageSpec(image="i"),
            readonly=True,
            uidMappings=[mapping()],
            gidMappings=[mapping()],
        )
        place = place.__class__(**(vars(place) | {"images": (Path("/merged"),)}))
        plain = pb.Mount(container_path="/plain", host_path="/p")
        found = mounts_of(config(mounts=[mapped, image, plain]), place)
        assert {item.target: item.idmaps for item in found} == {
            "/etc/resolv.conf": maps(),
            "/etc/hostname": maps(),
            "/etc/hosts": maps(),
            "/own": maps(),
            "/data": maps(9),
            "/image": None,  # overlayfs has no ID-mapped mounts: its layers were mapped
            "/plain": None,
        }


class TestMessages:
    PLACES = messages.Places(mountpoint=Path("/m"), shm=Path("/s"), held_capabilities=0)

    def container(self, pod: IdMaps | None, *mounts: Mount, **fields: object) -> tuple[dict, dict]:
        """What the supervisor reads, and what the container's processes read of it."""
        owner = idmaps.pod(SandboxSpec(id="s", user_namespace=pod))
        places = messages.Places(**(vars(self.PLACES) | {"userns": owner}))
        spec = ContainerSpec(
            id="c", sandbox_id="s", argv=("x",), lower_dirs=(Path("/i"),), mounts=mounts, **fields
        )
        found = messages.container(spec, places)
        return found, wire.decode(found["process"])

    def test_maps_are_numbered_and_the_pods_come_first(self):
        mounts = [
            Mount(source=Path("/a"), target="/a/deep", idmaps=maps(7)),
            Mount(source=Path("/b"), target="/b", idmaps=maps()),
            Mount(source=Path("/c"), target="/c"),
            Mount(source=Path("/d"), target="/d", idmaps=maps(7)),
        ]
        outer, inner = self.container(maps(), *mounts)
        assert outer["idmaps"] == [
            {"uids": [[0, 65536, 65536]], "gids": [[0, 65536, 65536]]},
            {"uids": [[0, 7, 65536]], "gids": [[0, 7, 65536]]},
        ]
        numbers = {mount["target"]: mount["idmap"] for mount in inner["rootfs"]["mounts"]}
        assert numbers == {b"/a/deep": 1, b"/b": 0, b"/c": -1, b"/d": 1}
        plain, inner = self.container(None, *mounts[1:])
        assert (plain["userns"], len(plain["idmaps"])) == (None, 2)
        assert [mount["idmap"] for mount in inner["rootfs"]["mounts"]] == [0, -1, 1]

    def test_root_terminals_and_capabilities(self):
        outer, inner = self.container(maps(), capabilities=("SYS_ADMIN",))
        assert outer["userns"]["root"] == inner["userns"]["root"] == [65536, 65536]
        assert inner["rootfs"]["tty_group"] == 65541
        assert inner["privileges"]["capabilities"] == 1 << 21  # although this process holds none
        assert self.container(maps(length=1))[1]["rootfs"]["tty_group"] == 65536
        _, plain = self.container(None, capabilities=("SYS_ADMIN",))
        assert (plain["rootfs"]["tty_group"], plain["privileges"]["capabilities"]) == (5, 0)

    def test_refused(self):
        with pytest.raises(InputError, match="PID namespace"):
            self.container(maps(), host_pid=True)
        with pytest.raises(InputError, match="mount /v: bidirectional"):
            self.container(maps(), Mount(source=Path("/v"), target="/v", propagation="shared"))
        for field in ("host_network", "host_ipc", "host_uts"):
            with pytest.raises(InputError, match="cannot own"):
                idmaps.pod(SandboxSpec(id="s", user_namespace=maps(), **{field: True}))
        shifted = (IdRange(inside=1, outside=5, length=9),)
        with pytest.raises(InputError, match="must have id 0"):
            idmaps.pod(SandboxSpec(id="s", user_namespace=IdMaps(uids=shifted, gids=shifted)))
        with pytest.raises(InputError, match="has 0 ranges"):
            idmaps.message("mount /x", IdMaps(uids=(), gids=()))
