"""Pulling into the store: a registry on a unix socket, well-behaved and otherwise."""

import asyncio
import json
import logging

import images_kit
import pytest
import zstandard
from images_kit import (
    BASE,
    HOST,
    REF,
    archive,
    descriptor,
    digest_of,
    image,
    leftovers,
    member,
    opened_store,
    serving,
)

from cri.images import manifest
from cri.images.errors import (
    CorruptContent,
    ImageMissing,
    ImageNotFound,
)
from cri.images.index import ImageIndex
from host.errors import Busy, InputError

built, fake, store = images_kit.built, images_kit.fake, images_kit.store


async def test_pull_unpacks_and_describes(store, built):
    seen = []
    got = await store.pull(REF, progress=seen.append)
    assert got.id == built.id
    assert got.repo_tags == (f"{HOST}/team/app:1",)
    assert got.repo_digests == (f"{HOST}/team/app@{built.digest}",)
    assert (got.config.env, got.config.cmd) == (("A=1",), ("sh",))
    top, base = store.layers(got.id)
    assert (top / "etc/motd").read_bytes() == b"hello"
    assert (base / "bin/sh").stat().st_size == 4000
    assert seen[-1].layers_done == seen[-1].layers == 2
    assert seen[-1].bytes_done == seen[-1].bytes_total
    assert store.usage().used_bytes > 4096
    assert json.loads(store.config_json(got.id))["os"] == "linux"
    assert leftovers(store) == []


async def test_lookup(store, built):
    assert store.get(REF) is None
    got = await store.pull(REF)
    for name in (REF, got.id, got.id[7:], got.id[7:20], got.repo_digests[0]):
        assert store.get(name) == got
    for name in ("sha256:" + "0" * 64, f"{HOST}/team/app:2", "::", ""):
        assert store.get(name) is None
    assert store.list() == (got,)


async def test_pulling_again_asks_for_the_manifest_only(store, fake):
    await store.pull(REF)
    fake.requests.clear()
    await store.pull(REF)
    assert fake.paths() == ["/v2/team/app/manifests/1"]


async def test_a_moved_tag_leaves_the_old_image_its_digest(store, fake, built):
    old = await store.pull(REF)
    newer = image(BASE)
    fake.add(newer, "1")
    new = await store.pull(REF)
    assert store.get(REF).id == new.id == newer.id
    assert store.get(old.id).repo_tags == ()
    assert store.get(old.id).repo_digests == old.repo_digests
    assert store.layers(new.id)[0] == store.layers(old.id)[1]


async def test_pull_by_digest_has_no_tag(store, built):
    got = await store.pull(f"{HOST}/team/app@{built.digest}")
    assert got.repo_tags == ()
    assert got.repo_digests == (f"{HOST}/team/app@{built.digest}",)


async def test_index_by_platform_keeps_the_digest_of_the_index(store, fake, built):
    here = manifest.this_platform()
    entries = [
        {**descriptor(b"other", manifest.OCI_MANIFEST), "platform": {"os": "linux", "architecture": "mips"}},
        {
            **descriptor(built.manifest, manifest.OCI_MANIFEST),
            "platform": {"os": "linux", "architecture": here.architecture},
        },
    ]
    document = {"schemaVersion": 2, "mediaType": manifest.OCI_INDEX, "manifests": entries}
    data = json.dumps(document).encode()
    fake.manifests["1"] = (data, manifest.OCI_INDEX)
    got = await store.pull(REF)
    assert got.repo_digests == (f"{HOST}/team/app@{digest_of(data)}",)


async def test_endless_indexes_are_refused(store, fake):
    data = b""
    for depth in range(6):
        inner = descriptor(data, manifest.OCI_INDEX)
        document = {"schemaVersion": 2, "mediaType": manifest.OCI_INDEX, "manifests": [inner], "n": depth}
        data = json.dumps(document).encode()
        fake.manifests[digest_of(data)] = fake.manifests["1"] = (data, manifest.OCI_INDEX)
    with pytest.raises(CorruptContent, match="nest"):
        await store.pull(REF)


async def test_errors_carry_the_registrys_reason(store):
    with pytest.raises(ImageNotFound, match=r"app:2.*not found.*manifest unknown"):
        await store.pull(f"{HOST}/team/app:2")
    with pytest.raises(InputError):
        await store.pull("Not A Reference")


async def test_an_image_for_another_machine_is_not_found(store, fake, built):
    document = json.loads(built.config) | {"architecture": "mips"}
    config = json.dumps(document).encode()
    body = json.loads(built.manifest)
    body["config"] = descriptor(config, body["config"]["mediaType"])
    fake.blobs[digest_of(config)] = config
    fake.manifests["1"] = (json.dumps(body).encode(), manifest.OCI_MANIFEST)
    with pytest.raises(ImageNotFound, match="mips"):
        await store.pull(REF)


async def test_equal_pulls_are_joined(store, fake):
    first, second = await asyncio.gather(store.pull(REF), store.pull(REF))
    assert first == second
    assert fake.paths().count("/v2/team/app/manifests/1") == 1


async def test_a_cancelled_pull_does_not_end_its_twin(store, fake):
    pulls = [asyncio.create_task(store.pull(REF)) for _ in range(2)]
    await asyncio.sleep(0)
    pulls[0].cancel()
    assert (await pulls[1]).repo_tags
    with pytest.raises(asyncio.CancelledError):
        await pulls[0]


async def test_different_images_share_downloads(store, fake, built):
    other = image(BASE)
    fake.add(other, "2")
    await asyncio.gather(store.pull(REF), store.pull(f"{HOST}/team/app:2"))
    assert fake.paths().count(f"/v2/team/app/blobs/{digest_of(built.layers[0])}") == 1


async def test_removal_spares_what_is_shared_and_held(store, fake, built):
    fake.add(image(BASE), "2")
    one, two = await store.pull(REF), await store.pull(f"{HOST}/team/app:2")
    top, base = store.layers(one.id)
    store.hold(one.id, "container")
    await store.remove(REF)
    assert store.get(one.id) is None and top.is_dir()
    assert store.layers(one.id) == (top, base)
    store.release(one.id, "container")
    await store.collect()
    assert not top.exists() and base.is_dir()
    await store.remove(two.id)
    await store.remove(two.id)
    assert not base.exists()
    assert store.usage().used_bytes == 0
    assert leftovers(store) == []
    with pytest.raises(ImageMissing):
        store.layers(one.id)
    with pytest.raises(ImageMissing):
        store.hold(one.id, "x")
    store.release(one.id, "x")


async def test_a_store_reopens_as_it_was(tmp_path, fake):
    async with serving(fake, tmp_path) as session:
        async with opened_store(tmp_path, session) as store:
            got = await store.pull(REF)
            usage = store.usage()
            (store._root / "tmp" / "blob-half").write_bytes(b"x")
            with pytest.raises(Busy):
                async with opened_store(tmp_path, session):
                    pass
        async with opened_store(tmp_path, session) as again:
            assert again.list() == (got,)
            assert again.usage() == usage
            assert leftovers(again) == []


@pytest.mark.parametrize("size", range(0, 700, 70))
async def test_a_torn_record_costs_one_image(tmp_path, fake, size, caplog):
    async with serving(fake, tmp_path) as session:
        async with opened_store(tmp_path, session) as store:
            await store.pull(REF)
            (record,) = (store._root / "images").glob("*.json")
        record.write_bytes(record.read_bytes()[:size])
        with caplog.at_level(logging.WARNING):
            async with opened_store(tmp_path, session) as again:
                assert again.list() == ()
                assert (await again.pull(REF)).repo_tags
    assert "unusable" in caplog.text


async def test_a_lost_layer_drops_the_image(tmp_path, fake, caplog):
    async with serving(fake, tmp_path) as session:
        async with opened_store(tmp_path, session) as store:
            got = await store.pull(REF)
            (store.layers(got.id)[0].parent / "layer.json").unlink()
        async with opened_store(tmp_path, session) as again:
            assert again.list() == ()
            await again.pull(REF)


async def test_a_spoiled_config_blob_is_noticed(tmp_path, fake, built):
    async with serving(fake, tmp_path) as session:
        async with opened_store(tmp_path, session) as store:
            got = await store.pull(REF)
            (store._root / "blobs/sha256" / got.id[7:]).write_bytes(b"{}")
        async with opened_store(tmp_path, session) as again:
            assert again.list() == ()
            assert (await again.pull(REF)).id == got.id


async def test_layer_blobs_need_not_be_kept(tmp_path, fake, built):
    async with (
        serving(fake, tmp_path) as session,
        opened_store(tmp_path, session, keep_layer_blobs=False) as store,
    ):
        await store.pull(REF)
        kept = {path.name for path in (store._root / "blobs/sha256").iterdir()}
        assert kept == {digest_of(data)[7:] for data in (built.manifest, built.config)}
        fake.requests.clear()
        await store.pull(REF)
        assert len(fake.requests) == 1


async def test_opaque_root_cuts_the_stack(store, fake):
    fake.add(image(BASE, archive(member(b".wh..wh..opq"), member(b"only", b"x"))), "1")
    got = await store.pull(REF)
    assert [path.name for path in store.layers(got.id)[0].iterdir()] == ["only"]
    assert len(store.layers(got.id)) == 1


async def test_pinned_images(tmp_path, fake):
    async with serving(fake, tmp_path) as session, opened_store(tmp_path, session, pinned=(REF,)) as store:
        assert (await store.pull(REF)).pinned


async def test_a_record_cut_at_any_byte_or_changed_is_never_believed(tmp_path, fake):
    async with serving(fake, tmp_path) as session, opened_store(tmp_path, session) as store:
        await store.pull(REF)
        (file,) = (store._root / "images").glob("*.json")
        good, blobs = file.read_bytes(), store.blobs
    for size in range(len(good)):
        for data in (good[:size], good[:size] + bytes((good[size] ^ 4,)) + good[size + 1 :]):
            file.write_bytes(data)
            index = ImageIndex(tmp_path / "images", blobs)
            assert len(index.load("boot")) == 1, data
            assert list(index.records()) == []
            assert not file.exists()


async def test_a_blob_that_rotted_is_noticed_when_it_is_needed(tmp_path, fake, built):
    digest = digest_of(built.layers[1])
    async with serving(fake, tmp_path) as session:
        async with opened_store(tmp_path, session) as store:
            got = await store.pull(REF)
            lost = store.layers(got.id)[0].parent / "layer.json"
            blob = store.blobs.path(digest)
        lost.unlink()
        blob.write_bytes(blob.read_bytes()[:-1] + b"?")
        async with opened_store(tmp_path, session) as store:
            with pytest.raises(CorruptContent, match=digest):
                await store.pull(REF)
            assert not blob.exists()
            assert (await store.pull(REF)).id == built.id


async def test_a_graph_of_indexes_costs_four_requests(store, fake):
    below = descriptor(b"none", manifest.OCI_INDEX)
    for level in range(10):
        entries = []
        for number in range(10):
            document = {"schemaVersion": 2, "manifests": [below] * 10, "n": [level, number]}
            data = json.dumps(document).encode()
            fake.manifests[digest_of(data)] = fake.manifests["1"] = (data, manifest.OCI_INDEX)
            entries.append(descriptor(data, manifest.OCI_INDEX))
        below = entries[0]
    with pytest.raises(CorruptContent, match="nest"):
        await store.pull(REF)
    assert len(fake.requests) == 4


async def test_foreign_layer_addresses_are_not_followed(store, fake, built):
    document = json.loads(built.manifest)
    for layer in document["layers"]:
        layer["urls"] = ["http://169.254.169.254/latest", "https://elsewhere.test/layer"]
        layer["annotations"] = {"containerd.io/distribution.source": "evil"}
    fake.manifests["1"] = (json.dumps(document).encode(), manifest.OCI_MANIFEST)
    await store.pull(REF)
    assert {request.host for request in fake.requests} == {HOST}


async def test_layers_without_gzip(store, fake):
    for tag, compress in (("plain", bytes), ("zstd", zstandard.compress)):
        fake.add(image(archive(member(tag.encode(), b"x")), compress=compress), tag)
        got = await store.pull(f"{HOST}/team/app:{tag}")
        assert [path.name for path in store.layers(got.id)[0].iterdir()] == [tag]


async def test_a_layer_that_leans_on_those_below_waits_for_them(store, fake):
    """Unpacked side by side: the hard link of the second layer leads to a file of the first."""
    low = archive(member(b"d/", kind=b"5", mode=0o711), member(b"d/f", b"low" * 100_000))
    top = archive(member(b"e", kind=b"1", link=b"d/f"), member(b"d/g", b"x"))
    fake.add(image(low, top), "1")
    got = await store.pull(REF)
    path = store.layers(got.id)[0]
    assert (path / "e").read_bytes() == b"low" * 100_000
    assert (path / "d").stat().st_mode & 0o777 == 0o711
    assert leftovers(store) == []
