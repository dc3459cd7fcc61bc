"""Downloads that are cut, stall or lie: they go on where they were, within one pull and over several."""

import asyncio
import json
import os

import images_kit
import pytest
from aiohttp import web
from images_kit import REF, digest_of, leftovers, opened_store, serving

from cri.images import manifest
from cri.images.errors import RegistryUnavailable

built, fake, store = images_kit.built, images_kit.fake, images_kit.store


async def test_cut_connections_are_resumed(store, fake, built):
    digest = digest_of(built.layers[0])
    fake.hooks[digest] = cutting(fake.blobs[digest], pieces=3)
    await store.pull(REF)
    ranges = [request.headers.get("Range") for request in fake.requests if request.path.endswith(digest)]
    assert len(ranges) == 3
    assert ranges[0] is None and ranges[1].startswith("bytes=")


def cutting(data: bytes, *, pieces: int):
    async def answer(request: web.Request) -> web.StreamResponse | None:
        start = request.http_range.start or 0
        end = start + len(data) // pieces + 1
        if end >= len(data):
            return None
        status = 206 if start else 200
        headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
        response = web.StreamResponse(status=status, headers=headers)
        response.content_length = len(data) - start
        await response.prepare(request)
        await response.write(data[start:end])
        request.transport.abort()
        return response

    return answer


async def test_a_registry_that_always_cuts_is_unavailable(store, fake, built):
    digest = digest_of(built.layers[0])

    async def cut(request):
        request.transport.abort()
        return web.Response()

    fake.hooks[digest] = cut
    with pytest.raises(RegistryUnavailable):
        await store.pull(REF)
    assert leftovers(store) == []


async def test_range_ignored_by_the_server_starts_anew(store, fake, built):
    digest = digest_of(built.layers[0])
    data = fake.blobs[digest]
    once = cutting(data, pieces=2)

    async def forgetful(request):
        return web.Response(body=data) if "Range" in request.headers else await once(request)

    fake.hooks[digest] = forgetful
    assert (await store.pull(REF)).id == built.id


def cut_at(fake, layer: bytes, *ends: int):
    """Blob requests get the bytes up to the next of `ends` and then a broken connection; later ones all."""
    left, ranges = list(ends), []

    async def hook(request):
        ranges.append(request.headers.get("Range", ""))
        if not left:
            return None
        response = web.StreamResponse(status=206 if ranges[-1] else 200, headers={"Content-Length": "9999"})
        start = request.http_range.start or 0
        if start:
            response.headers["Content-Range"] = f"bytes {start}-{len(layer) - 1}/{len(layer)}"
        response.content_length = len(layer) - start
        await response.prepare(request)
        await response.write(layer[start : left.pop(0)])
        request.transport.close()
        return response

    fake.hooks[f"/blobs/{digest_of(layer)}"] = hook
    return ranges


async def test_a_later_pull_goes_on_where_the_last_one_was_cut(tmp_path, fake, built):
    layer = built.layers[1]
    ranges = cut_at(fake, layer, 40, 40)  # the second one brings nothing new: the pull is given up
    async with serving(fake, tmp_path) as session:
        async with opened_store(tmp_path, session) as store:
            with pytest.raises(RegistryUnavailable):
                await store.pull(REF)
        partial = tmp_path / "images/partial" / digest_of(layer).removeprefix("sha256:")
        assert partial.read_bytes() == layer[:40], "others may be there too: they were on their way"
        async with opened_store(tmp_path, session) as store:  # a new daemon
            await store.pull(REF)
            assert ranges == ["", "bytes=40-", "bytes=40-"]
            assert list((tmp_path / "images/partial").iterdir()) == []


@pytest.mark.parametrize("junk", [b"x" * 40, b"x" * 5000], ids=["wrong", "longer than the blob"])
async def test_a_partial_blob_that_is_wrong_is_fetched_anew(tmp_path, fake, built, junk):
    layer = built.layers[1]
    ranges = cut_at(fake, layer)
    async with serving(fake, tmp_path) as session, opened_store(tmp_path, session) as store:
        (tmp_path / "images/partial" / digest_of(layer).removeprefix("sha256:")).write_bytes(junk)
        assert (await store.pull(REF)).id == built.id
    assert ranges == (["bytes=40-", ""] if len(junk) == 40 else [""])


async def test_a_partial_blob_survives_a_cancelled_pull_and_goes_with_age(tmp_path, fake, built):
    layer = built.layers[1]
    sent = asyncio.Event()

    async def hook(request):
        response = web.StreamResponse(headers={"Content-Length": str(4 << 20)})
        await response.prepare(request)
        await response.write(bytes(2 << 20))
        sent.set()
        await asyncio.sleep(60)
        return response

    fake.hooks[f"/blobs/{digest_of(layer)}"] = hook
    document = json.loads(built.manifest)
    document["layers"][1]["size"] = 4 << 20
    fake.manifests["1"] = (json.dumps(document).encode(), manifest.OCI_MANIFEST)
    async with serving(fake, tmp_path) as session, opened_store(tmp_path, session) as store:
        pull = asyncio.create_task(store.pull(REF))
        partial = tmp_path / "images/partial" / digest_of(layer).removeprefix("sha256:")
        await sent.wait()
        while not partial.is_file() or partial.stat().st_size < 1 << 20:
            await asyncio.sleep(0.01)
        (pulling,) = store.pulls()
        assert (pulling["image"], pulling["layers"], pulling["bytes"] > 4 << 20) == (REF, 2, True)
        await store.collect()
        assert partial.is_file()  # in use
        pull.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pull
        assert store.pulls() == []
        await store.collect()
        assert partial.is_file()
        os.utime(partial, (1, 1))
        await store.collect()
        assert not partial.exists()


async def test_a_download_that_stalls_is_begun_again_where_it_stalled(tmp_path, fake, built):
    layer = built.layers[0]
    ranges, over = [], asyncio.Event()

    async def hook(request):
        ranges.append(request.headers.get("Range", ""))
        if len(ranges) > 1:
            return None
        response = web.StreamResponse()
        response.content_length = len(layer)
        await response.prepare(request)
        await response.write(layer[:30])
        await over.wait()
        return response

    fake.hooks[f"/blobs/{digest_of(layer)}"] = hook
    async with (
        serving(fake, tmp_path) as session,
        opened_store(tmp_path, session, progress_timeout=0.2) as store,
    ):
        try:
            assert (await store.pull(REF)).id == built.id
        finally:
            over.set()
    assert ranges == ["", "bytes=30-"]


async def test_a_server_that_cannot_resume_is_asked_for_everything(store, fake, built):
    layer = built.layers[0]
    cut = cut_at(fake, layer, 40)
    usual = fake.hooks[f"/blobs/{digest_of(layer)}"]

    async def hook(request):
        if request.headers.get("Range"):
            cut.append(request.headers["Range"])
            return web.Response(status=416)
        return await usual(request)

    fake.hooks[f"/blobs/{digest_of(layer)}"] = hook
    assert (await store.pull(REF)).id == built.id
    assert cut == ["", "bytes=40-", ""]
