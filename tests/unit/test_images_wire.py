"""Registries that lie, redirect, refuse or stay silent, and what a pull makes of it."""

import asyncio
import json
import logging
import traceback

import images_kit
import pytest
from aiohttp import web
from images_kit import HOST, REF, digest_of, leftovers, on_socket, opened_store, serving
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
