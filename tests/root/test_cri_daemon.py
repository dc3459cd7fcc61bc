"""The daemon beside its calls: what it says of a broken network, and that it is alone on its files."""

from __future__ import annotations

import sys

import grpc
import pytest
from criclient import refused
from crinode import CriNode

from host import processes
from proto.cri import runtime_pb2 as pb


async def test_the_network_is_not_ready_without_a_configuration(node: CriNode):
    conf = node.folder / "net.d" / "10-nodelet.conflist"
    away = conf.rename(node.folder / "away")
    try:
        network = (await node.runtime.Status(pb.StatusRequest())).status.conditions[1]
        assert not network.status
        assert "cni config uninitialized" in network.message
        code, words = await refused(node.run_pod(node.sandbox_config()))
        assert code is grpc.StatusCode.UNKNOWN
        assert "cni config uninitialized" in words
    finally:
        away.rename(conf)
    assert (await node.runtime.Status(pb.StatusRequest())).status.conditions[1].status


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ([], "another program listens on"),
        (["--listen=unix://{folder}/other.sock"], "another nodelet-cri uses"),
    ],
    ids=["socket", "state"],
)
async def test_a_second_daemon_on_the_same_files_is_refused(node: CriNode, change: list[str], words: str):
    extra = [flag.format(folder=node.folder) for flag in change]
    argv = [sys.executable, "-m", "cri.main", *node.arguments, *extra]
    done = await processes.run_async(argv, timeout=20, check=False)
    assert done.returncode == 2
    assert done.stderr.decode().startswith(f"nodelet-cri: {words} ")
    assert done.stderr.count(b"\n") == 1
