"""Registries that cut, lie, redirect, refuse or stay silent, and what a pull makes of it."""

import asyncio
import json
import logging
import os
import traceback

import images_kit
import pytest
from aiohttp import web
from images_kit import (
    HOST,
    REF,
    digest_of,
    leftovers,
    on_socket,
    opened_store,
    serving,
)
from yarl import URL

from cri.images import manifest
from cri.images.errors import AccessDenied, CorruptContent, PullError, RegistryUnavailable
from cri.images.model import Credentials
from cri.images.registry import redirect_target

built, fake, store = images_kit.built, images_kit.fake, images_kit.store


@pytest.mark.parametrize("spoil", ["flip", "longer", "shorter"])
async def test_spoiled_blobs_are_refused_and_leave_nothing(store, fake, built, spoil):
    digest = digest_of(built.layers[1])
    good = fake.blobs[digest]
    fake.blobs[digest] = {"flip": b"X" + good[1:], "longer": good + b"X", "shorter": good[:-1]}[spoil]
    with pytest.raises(PullError, match=digest):
        await store.pull(REF)
    assert store.list() == ()
    assert leftovers(store) == []
    fake.blobs[digest] = good
    await store.pull(REF)


async def test_wrong_diff_id_is_refused(store, fake, built):
    body = json.loads(built.manifest)
    body["layers"].reverse()
    fake.manifests["1"] = (json.dumps(body).encode(), manifest.OCI_MANIFEST)
    with pytest.raises(CorruptContent, match="configuration says"):
        await store.pull(REF)
    assert list((store._root / "layers").iterdir()) == []


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


async def test_basic_and_missing_credentials(tmp_path, built):
    from deploy.labkit import registry

    content = registry.RegistryStore(root=tmp_path / "registry")
    for data in (built.config, *built.layers):
        content.put_blob(data)
    content.put_manifest(f"{HOST}/team/app", built.manifest, media_type=manifest.OCI_MANIFEST, tags=("1",))
    app = registry.application(tmp_path / "registry", accounts={"me": "secret"}, private=(HOST,))
    async with on_socket(app, tmp_path) as session, opened_store(tmp_path, session) as store:
        with pytest.raises(AccessDenied, match=r"401.*authentication required"):
            await store.pull(REF)
        with pytest.raises(AccessDenied, match="refused"):
            await store.pull(REF, Credentials(username="me", password="wrong"))
        with pytest.raises(AccessDenied):
            await store.pull(REF, Credentials(username="me", password="secret", server_address="other.test"))
        assert await store.pull(REF, Credentials(username="me", password="secret"))


async def test_bearer_tokens(store, fake):
    async def token(request):
        assert request.query["scope"] == "repository:team/app:pull"
        assert request.headers["Authorization"].startswith("Basic ")
        return web.json_response({"token": "t0ken"})

    async def guard(request):
        if request.headers.get("Authorization") == "Bearer t0ken":
            return None
        realm = f'Bearer realm="http://{HOST}/token",service="s"'
        return web.json_response({}, status=401, headers={"WWW-Authenticate": realm})

    fake.hooks["/token"] = token
    fake.hooks["/1"] = guard
    await store.pull(REF, Credentials(username="me", password="pw"))
    assert fake.paths().count("/token") == 1


async def test_redirects_travel_without_secrets(store, fake, built):
    digest = digest_of(built.layers[0])

    async def elsewhere(request):
        if request.host == "cdn.test":
            return None
        return web.Response(status=307, headers={"Location": f"http://cdn.test/blobs/{digest}?sig=canary"})

    fake.hooks[digest] = elsewhere
    await store.pull(REF, Credentials(registry_token="t0ken"))
    (cdn,) = [request for request in fake.requests if request.host == "cdn.test"]
    assert "Authorization" not in cdn.headers
    home = [request for request in fake.requests if request.host == HOST]
    assert all(request.headers["Authorization"] == "Bearer t0ken" for request in home)


@pytest.mark.parametrize(
    "location",
    ["http://169.254.169.254/x?s=canary", "file:///etc/passwd", "http://a:canary@b/", "http://[x", ""],
)
async def test_bad_redirects_are_refused_without_telling_secrets(store, fake, built, location):
    async def away(request):
        return web.Response(status=302, headers={"Location": location})

    fake.hooks[digest_of(built.layers[0])] = away
    with pytest.raises(RegistryUnavailable, match="redirects") as caught:
        await store.pull(REF)
    assert "canary" not in str(caught.value)


async def test_redirect_loops_end(store, fake):
    async def again(request):
        return web.Response(status=301, headers={"Location": request.path + "?x=canary"})

    fake.hooks["/1"] = again
    with pytest.raises(RegistryUnavailable, match="circles"):
        await store.pull(REF)


async def test_server_errors_and_giant_manifests(store, fake):
    async def broken(request):
        return web.Response(status=503, text="<html>https://x/?canary")

    fake.hooks["/1"] = broken
    with pytest.raises(RegistryUnavailable, match="503") as caught:
        await store.pull(REF)
    assert "canary" not in str(caught.value)

    async def giant(request):
        return web.Response(body=b" " * (manifest.MAX_MANIFEST_BYTES + 1))

    fake.hooks["/1"] = giant
    with pytest.raises(CorruptContent, match="larger"):
        await store.pull(REF)


async def test_a_silent_registry_times_out(tmp_path, fake):
    async def silent(request):
        await asyncio.sleep(3600)

    fake.hooks["/1"] = silent
    async with (
        serving(fake, tmp_path) as session,
        opened_store(tmp_path, session, progress_timeout=0.05) as store,
    ):
        with pytest.raises(RegistryUnavailable, match="in time"):
            await store.pull(REF)


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
        (partial,) = (tmp_path / "images/partial").iterdir()
        assert partial.read_bytes() == layer[:40]
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


async def test_identity_tokens_are_exchanged(store, fake):
    """An OAuth2 refresh token goes into the body of a POST (distribution spec, "oauth2 token")."""

    async def token(request):
        form = await request.post()
        assert (form["grant_type"], form["refresh_token"]) == ("refresh_token", "r3fresh")
        assert form["scope"] == "repository:team/app:pull"
        assert "r3fresh" not in str(request.url)
        return web.json_response({"access_token": "t0ken"})

    fake.hooks["/token"] = token
    fake.hooks["/1"] = wants_token
    await store.pull(REF, Credentials(identity_token="r3fresh"))


async def wants_token(request):
    if request.headers.get("Authorization") == "Bearer t0ken":
        return None
    realm = f'Bearer realm="http://{HOST}/token",service="s"'
    return web.json_response({}, status=401, headers={"WWW-Authenticate": realm})


async def test_anonymous_tokens(store, fake):
    async def token(request):
        assert "Authorization" not in request.headers
        return web.json_response({"token": "t0ken"})

    fake.hooks["/token"] = token
    fake.hooks["/1"] = wants_token
    assert await store.pull(REF)


@pytest.mark.parametrize("answer", [{"token": "x" * (1 << 20)}, {"token": "other"}], ids=["1 MB", "useless"])
async def test_token_loops_and_giant_tokens_end(store, fake, answer):
    async def token(request):
        return web.json_response(answer)

    fake.hooks["/token"] = token
    fake.hooks["/1"] = wants_token
    with pytest.raises((AccessDenied, CorruptContent)):
        await store.pull(REF)
    assert len(fake.requests) <= 3


SECRETS = Credentials(
    username="canary-user",
    password="canary-password",
    identity_token="canary-identity",
    registry_token="",
)


@pytest.mark.parametrize("where", ["401", "403", "503", "redirect", "cut", "token", "junk"])
async def test_secrets_reach_no_log_and_no_error(store, fake, built, caplog, where):
    """At the most talkative level, in messages, in what they carry along and in tracebacks."""
    caplog.set_level(logging.DEBUG)
    layer = digest_of(built.layers[0])

    async def misbehave(request):
        if where == "redirect":
            return web.Response(status=307, headers={"Location": f"http://{HOST}/gone?sig=canary-sas"})
        if where == "cut":
            request.transport.close()
        if where == "junk":
            return web.Response(body=b"x", headers={"Content-Length": "1"})
        if where == "token":
            header = f'Bearer realm="http://canary-user:canary-pw@{HOST}/t?sig=canary-sas"'
            return web.json_response({}, status=401, headers={"WWW-Authenticate": header})
        body = {"errors": [{"message": "see https://x.test/?sig=canary-sas"}]}
        return web.json_response(body, status=int(where if where.isdigit() else 500))

    fake.hooks["/gone"] = fake.hooks[layer] = misbehave
    with pytest.raises(PullError) as caught:
        await store.pull(REF, SECRETS)
    told = [*traceback.format_exception(caught.value), repr(caught.value), repr(SECRETS), caplog.text]
    told.append(json.dumps(store.pulls()))
    assert "canary" not in "".join(told)


@pytest.mark.parametrize(
    ("origin", "location", "words"),
    [
        ("https://r.test/v2/x", "http://r.test/v2/x", "https to http"),
        ("https://r.test/v2/x", "https://[fe80::1]/x", "link-local"),
        ("https://r.test/v2/x", "https://[::ffff:169.254.169.254]/x", "link-local"),
        ("https://r.test/v2/x", "ftp://r.test/x", "malformed"),
    ],
)
def test_redirects_downwards_are_refused(origin, location, words):
    with pytest.raises(RegistryUnavailable, match=words):
        redirect_target(URL(origin), location)


async def test_another_port_of_the_same_host_gets_no_credentials(store, fake, built):
    digest = digest_of(built.layers[0])

    async def elsewhere(request):
        if request.host != HOST:
            return None
        return web.Response(status=307, headers={"Location": f"http://{HOST}:8443/blobs/{digest}"})

    fake.hooks[digest] = elsewhere
    await store.pull(REF, Credentials(registry_token="t0ken"))
    assert ["Authorization" in item.headers for item in fake.requests if item.host != HOST] == [False]


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
