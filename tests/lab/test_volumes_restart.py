"""Volumes over a kill -9 of the agent: those of a running pod go on, those of one deleted meanwhile go."""

from kit import config_map, container, container_status, pod, secret, until

MOUNTS = [
    {"name": "memory", "mountPath": "/m"},
    {"name": "disk", "mountPath": "/part", "subPath": "a/b"},
    {"name": "map", "mountPath": "/map"},
    {"name": "secret", "mountPath": "/s"},
]
VOLUMES = [
    {"name": "memory", "emptyDir": {"medium": "Memory"}},
    {"name": "disk", "emptyDir": {}},
    {"name": "map", "configMap": {"name": "m"}},
    {"name": "secret", "secret": {"secretName": "s"}},
]


def test_volumes_are_found_again_after_the_agent_was_killed(ns):
    script = "echo kept > /m/file; echo kept > /part/file; sleep 3600"
    ns.apply(
        config_map("m", key="old"),
        secret("s", password="x"),
        pod("stays", container(script, volumeMounts=MOUNTS), node="n1", volumes=VOLUMES),
        pod("goes", container(script, volumeMounts=MOUNTS), node="n1", volumes=VOLUMES),
    )
    before = ns.wait_running("stays")
    folder = f"/var/lib/kubelet/pods/{ns.wait_running('goes')['metadata']['uid']}"

    def mounts():
        return ns.cluster.node("n1", "cat", "/proc/self/mounts").count(folder)

    assert mounts() > 3  # two tmpfs, the token's, and the subPath's bind
    with ns.cluster.killed("n1", "nodelet"):
        ns.kubectl("delete", "pod", "goes", "--grace-period=1", "--wait=false")
        ns.apply(config_map("m", key="new"))
    ns.wait_gone("goes")
    until("its folder gone", lambda: not ns.cluster.node("n1", "ls", folder, check=False).strip())
    assert mounts() == 0
    until("the change made meanwhile", lambda: ns.sh("stays", "cat /map/key") == "new")
    assert ns.sh("stays", "cat /m/file /part/file /s/password").split() == ["kept", "kept", "x"]
    assert container_status(ns.pod("stays"))["containerID"] == container_status(before)["containerID"]
