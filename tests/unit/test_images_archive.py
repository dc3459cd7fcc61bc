"""Archives in and out, with the daemon's store open beside."""

import gzip
import io
import json
import tarfile

import pytest
from images_kit import archive, digest_of, image, member, opened_store

from cri.images import cli, manifest
from cri.images.archive import export_archive, import_archive
from cri.images.errors import CorruptContent, ImageNotFound
from host.errors import InputError

LAYER = archive(member(b"bin/sh", b"#!", mode=0o755))
NAME = "docker.io/me/app:1"


@pytest.fixture
async def daemon(tmp_path):
    async with opened_store(tmp_path, None) as store:
        yield store


@pytest.fixture
async def importer(tmp_path, daemon):
    from cri.images.store import ImageStore

    store = ImageStore(tmp_path / "images", sync=lambda: None)
    await store.open(shared=True)
    yield store
    await store.close()


def docker_archive(**changes) -> bytes:
    built = image(LAYER)
    entry = {"Config": "c.json", "RepoTags": ["me/app:1"], "Layers": ["x/layer.tar", "y/layer.tar"]}
    config = json.loads(built.config)
    config["rootfs"]["diff_ids"] *= 2
    return archive(
        member(b"manifest.json", json.dumps([{**entry, **changes}]).encode()),
        member(b"c.json", json.dumps(config).encode()),
        member(b"x/layer.tar", LAYER),
        member(b"y/layer.tar", kind=b"2", link=b"../x/layer.tar"),
    )


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
async def test_docker_archives(importer, daemon, pack):
    (got,) = await import_archive(importer, io.BytesIO(pack(docker_archive())))
    assert got.repo_tags == (NAME,)
    seen = daemon.get("me/app:1")
    assert seen == got
    assert (daemon.layers(seen.id)[0] / "bin/sh").read_bytes() == b"#!"
    await daemon.remove(NAME)
    assert daemon.usage().used_bytes > 0  # nothing is swept while an importer is at work
    await importer.close()
    await daemon.collect()
    assert daemon.usage().used_bytes == 0


async def test_oci_layouts_and_export(importer, tmp_path):
    built = image(LAYER)
    entry = {"mediaType": manifest.OCI_MANIFEST, "digest": built.digest, "size": len(built.manifest)}
    index = {"schemaVersion": 2, "manifests": [entry]}
    blobs = {**built.blobs(), built.digest: built.manifest}
    data = archive(
        member(b"oci-layout", b"{}"),
        member(b"index.json", json.dumps(index).encode()),
        *[member(b"blobs/sha256/" + digest[7:].encode(), blob) for digest, blob in blobs.items()],
    )
    with pytest.raises(InputError, match="--name"):
        await import_archive(importer, io.BytesIO(data))
    (got,) = await import_archive(importer, io.BytesIO(data), name="me/app:1")
    assert got.repo_digests == (f"docker.io/me/app@{built.digest}",)
    export_archive(importer, got, tmp_path / "out.tar")
    with tarfile.open(tmp_path / "out.tar") as tar:
        assert tar.extractfile("blobs/sha256/" + built.digest[7:]).read() == built.manifest
    with (tmp_path / "out.tar").open("rb") as file:
        (again,) = await import_archive(importer, file)
    assert (again.id, again.repo_tags) == (got.id, got.repo_tags)


@pytest.mark.parametrize(
    "data",
    [
        archive(member(b"readme", b"x")),
        archive(member(b"manifest.json", b"{}")),
        archive(member(b"manifest.json", b"[")),
        archive(member(b"index.json", b'{"schemaVersion": 2, "layers": []}')),
        docker_archive(Layers=["../../etc/passwd"]),
        docker_archive(Config=None),
        docker_archive(RepoTags=[7]),
        docker_archive(Layers=["x/layer.tar"]),
        b"not a tar" * 100,
    ],
)
async def test_malformed_archives_are_refused(importer, data):
    with pytest.raises(CorruptContent):
        await import_archive(importer, io.BytesIO(data))


async def test_missing_blobs_are_named(importer):
    index = {
        "schemaVersion": 2,
        "manifests": [{"mediaType": manifest.OCI_MANIFEST, "digest": digest_of(b"x"), "size": 1}],
    }
    data = archive(member(b"index.json", json.dumps(index).encode()))
    with pytest.raises(ImageNotFound, match=digest_of(b"x")):
        await import_archive(importer, io.BytesIO(data), name="a")


def test_command_line(tmp_path, capsys):
    (tmp_path / "x.tar").write_bytes(docker_archive())
    root = ["--root", str(tmp_path)]
    assert cli.main(["import", *root, str(tmp_path / "x.tar")]) == 0
    assert NAME in capsys.readouterr().out
    assert cli.main(["export", *root, "me/app:1", str(tmp_path / "y.tar")]) == 0
    assert cli.main(["export", *root, "me/app:1", str(tmp_path / "y.tar")]) == 1
    assert cli.main(["export", *root, "gone\x1b[0m", str(tmp_path / "z.tar")]) == 1
    assert "\x1b" not in capsys.readouterr().err
