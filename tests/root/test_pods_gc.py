"""Garbage collection on a real `nodelet-cri`: what is in use stays, by the names the runtime itself gives."""

from __future__ import annotations

from pathlib import Path

from crinode import BUSYBOX, VOLUMES, CriNode
from podkit import Node
from test_pods_runtime import kit, shell, until

from agent.resources.eviction.usage import UsageReader
from agent.resources.image_gc import ImageCollector, ImagePolicy
from host.cgroups import Cgroups

__all__ = ["kit"]


async def tags(kit: Node) -> set[str]:
    return {tag for image in await kit.cri.images() for tag in image.repo_tags}


def collector(kit: Node) -> ImageCollector:
    async def unknown() -> None:
        return None

    return ImageCollector(
        ImagePolicy(minimum_age=0.0),
        clock=kit.clock,
        runtime=kit.cri,
        failures=(),
        used=kit.manager.garbage.images_in_use,
        disk=unknown,
        say=lambda *_: None,
    )


async def test_an_image_goes_when_its_last_dead_container_has_gone(kit: Node, node: CriNode) -> None:
    kit.manager.put(shell("echo done", spec={"restartPolicy": "Never"}))
    await until(lambda: kit.phase() == "Succeeded")
    images = collector(kit)
    await images.delete_unused()
    left = await tags(kit)
    assert any(BUSYBOX.partition("/")[2] in tag for tag in left)
    assert not any(VOLUMES.partition("/")[2] in tag for tag in left)
    log = Path(kit.manager.log_path("default", "web", "app") or "")
    assert log.exists()
    await kit.manager.garbage.delete_dead()
    await until(lambda: not kit.manager.observer.of("u1").containers)
    assert not log.exists()
    assert kit.phase() == "Succeeded"
    await images.delete_unused()
    assert await tags(kit) == set()


async def test_what_a_pod_uses(kit: Node) -> None:
    script = "head -c 5000000 /dev/zero > /file; echo hello; sleep 1000"
    kit.manager.put(shell(script))
    await until(lambda: kit.phase() == "Running")
    reader = UsageReader(
        stats=kit.cri.container_stats,
        failures=(),
        cgroups=Cgroups(),
        pod_cgroup=lambda pod: f"{kit.settings.cgroup_root}/kubepods/besteffort/pod{pod.metadata.uid}",
        settings=kit.settings,
    )
    log = Path(kit.manager.log_path("default", "web", "app") or "")
    await until(lambda: "hello" in log.read_text())
    found = (await reader.read([kit.pod()], disk=True))["u1"]
    assert found.memory > 0 and found.processes >= 1
    used = found.containers["app"]
    assert 0 < used.memory <= found.memory
    assert 5_000_000 <= used.rootfs.bytes < 6_000_000
    assert 0 < used.logs.bytes < 100_000
