"""What /metrics tells of pods and containers."""

from __future__ import annotations

from pathlib import Path

from podkit import Node, deleted, make_pod, running

from agent.server import exposition


async def test_starts_are_counted_and_timed(tmp_path: Path) -> None:
    async with running(Node(tmp_path)) as node:
        spec = {
            "initContainers": [{"name": "init", "image": "busybox"}],
            "containers": [{"name": "app", "image": "busybox"}],
        }
        await node.put(make_pod(spec=spec))
        await node.advance(2)
        (init,) = (each for each in node.cri.containers() if each.name == "init")
        node.cri.exit(init.id, 0)
        await node.advance(3)
        assert node.phase() == "Running"
        seen = exposition.values(node.manager.families())
        assert seen["kubelet_started_pods_total"] == 1
        assert seen['kubelet_started_containers_total{container_type="init_container"}'] == 1
        assert seen['kubelet_started_containers_total{container_type="container"}'] == 1
        assert seen['kubelet_running_containers{container_state="running"}'] == 1
        assert seen["kubelet_pod_start_duration_seconds_count"] == 1
        assert 2 <= seen["kubelet_pod_start_duration_seconds_sum"] <= 5
        node.cri.exit(node.cri.containers()[-1].id, 1)
        await node.advance(20)
        again = exposition.values(node.manager.families())
        assert again['kubelet_started_containers_total{container_type="container"}'] == 2
        assert again["kubelet_pod_start_duration_seconds_count"] == 1, "a restart is no start of the pod"
        await node.put(deleted(make_pod(spec=spec)))
