"""`nodelet-cri image` beside a running daemon: progress, archives in and out, removal of the unused."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from crinode import BUSYBOX, CriNode
from images_kit import HOST, FakeRegistry, archive, digest_of, image, member

from cri.images import cli
from host import helpers
from proto.cri import runtime_pb2 as pb

LAYER = archive(member(b"bin/", kind=b"5", mode=0o755), member(b"bin/tool", b"#!/bin/sh\n" * 1000))


async def said(node: CriNode, *words: str) -> str:
    """What the command prints; it succeeds."""
    places = [f"--endpoint=unix://{node.socket}", f"--root={node.folder / 'root'}"]
    argv = [sys.executable, "-m", "cri.main", "image", *words, *places]
    done = await helpers.run_async(argv, timeout=60.0, env={"PYTHONPATH": ":".join(sys.path)})
    return done.stdout.decode()


@pytest.fixture
async def fake(node: CriNode) -> AsyncIterator[FakeRegistry]:
    """A registry for `HOST` that does what it is told."""
    registry = FakeRegistry()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", registry.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    folder = node.folder / "registries" / HOST
    folder.mkdir(exist_ok=True)
    (folder / "hosts.toml").write_text(f'server = "http://127.0.0.1:{runner.addresses[0][1]}"\n')
    yield registry
    await runner.cleanup()
    shutil.rmtree(folder)  # later tests pull from the registry of all of them


async def test_progress_is_seen_while_a_pull_goes_on(node: CriNode, fake: FakeRegistry):
    built = image(LAYER, archive(member(b"big", bytes(range(256)) * 100)), compress=bytes)
    fake.add(built, "1")
    go_on = asyncio.Event()

    async def hold(_: web.Request) -> None:
        await go_on.wait()

    fake.hooks[digest_of(built.layers[1])] = hold
    name = f"{HOST}/team/app:1"
    request = pb.PullImageRequest(image=pb.ImageSpec(image=name))
    pull = asyncio.ensure_future(node.images.PullImage(request))
    async with asyncio.timeout(60):
        while "1/2" not in (table := await said(node, "ls", "--pulls")):
            await asyncio.sleep(0.1)
    assert table.split("\n")[0].split() == ["LAYERS", "DONE", "SIZE", "SECONDS", "NAME"]
    assert table.split("\n")[1].split()[-1] == name
    info = (await node.runtime.Status(pb.StatusRequest(verbose=True))).info
    (facts,) = json.loads(info["imagePulls"])
    assert 0 < facts["bytesDone"] < facts["bytes"] == sum(map(len, built.layers))
    go_on.set()
    assert (await pull).image_ref == built.id
    assert (await said(node, "ls", "--pulls")).count("\n") == 1
    assert await said(node, "rm", name) == ""
    assert name not in await said(node, "ls")


async def test_archives_come_in_and_go_out_beside_the_daemon(
    node: CriNode, fake: FakeRegistry, tmp_path: Path
):
    built = image(LAYER)
    fake.add(built, "1")
    name = f"{HOST}/team/app:1"
    assert await said(node, "pull", name) == built.id + "\n"
    out = tmp_path / "app.tar"
    await said(node, "export", name, str(out))
    with tarfile.open(out) as tar:
        assert {"oci-layout", "index.json", "manifest.json"} <= set(tar.getnames())
    await said(node, "rm", name)
    assert built.id in await said(node, "import", str(out))
    spec = pb.ImageSpec(image=name)
    found = (await node.images.ImageStatus(pb.ImageStatusRequest(image=spec))).image
    assert (found.id, list(found.repo_tags)) == (built.id, [name])
    _, container, _ = await node.launch("sleep", "1000")
    assert f"removed {name}" in await said(node, "prune")
    assert [BUSYBOX in (await said(node, "ls")), container != ""] == [True, True]  # a container uses it


def test_export_from_no_store_makes_none(tmp_path, capsys):
    assert cli.main(["export", f"--root={tmp_path}/none", "app", f"{tmp_path}/x.tar"]) == 1
    assert "--root" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
