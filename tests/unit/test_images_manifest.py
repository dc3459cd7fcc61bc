"""Manifests, indexes and image configurations as strangers write them."""

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri.images import manifest
from cri.images.errors import CorruptContent, ImageNotFound
from cri.images.imageconfig import chain_ids, parse_config
from cri.images.manifest import Descriptor, Index, Manifest, Platform

DIGEST = "sha256:" + "ab" * 32
CONFIG = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": DIGEST, "size": 10}
LAYER = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": DIGEST, "size": 10}
IMAGE = {"schemaVersion": 2, "mediaType": manifest.OCI_MANIFEST, "config": CONFIG, "layers": [LAYER]}
INDEX = {
    "schemaVersion": 2,
    "mediaType": manifest.OCI_INDEX,
    "manifests": [{"mediaType": manifest.OCI_MANIFEST, "digest": DIGEST, "size": 10}],
}


def parse(document, media_type=""):
    return manifest.parse_manifest(json.dumps(document).encode(), media_type)


def test_image_and_index():
    assert isinstance(parse(IMAGE, manifest.OCI_MANIFEST), Manifest)
    assert isinstance(parse(INDEX, manifest.OCI_INDEX), Index)
    assert isinstance(parse({**IMAGE, "mediaType": manifest.DOCKER_MANIFEST}), Manifest)


@pytest.mark.parametrize(
    "layer_type",
    [
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    ],
)
def test_layer_types(layer_type):
    parse({**IMAGE, "layers": [{**LAYER, "mediaType": layer_type}]})


REFUSED = [
    [],
    "text",
    {**IMAGE, "manifests": []},
    {**INDEX, "config": CONFIG},
    {"schemaVersion": 1, "fsLayers": []},
    {**IMAGE, "schemaVersion": 1},
    {**IMAGE, "schemaVersion": True},
    {**IMAGE, "mediaType": manifest.OCI_INDEX},
    {**IMAGE, "mediaType": "text/html"},
    {**IMAGE, "mediaType": ["list"]},
    {**IMAGE, "config": None},
    {**IMAGE, "config": {**CONFIG, "digest": DIGEST.upper()}},
    {**IMAGE, "config": {**CONFIG, "digest": "sha256:../../x"}},
    {**IMAGE, "config": {**CONFIG, "size": 1.5}},
    {**IMAGE, "config": {**CONFIG, "size": -1}},
    {**IMAGE, "config": {**CONFIG, "size": True}},
    {**IMAGE, "config": {**CONFIG, "size": 1 << 60}},
    {**IMAGE, "config": {**CONFIG, "mediaType": "application/vnd.cncf.helm.config.v1+json"}},
    {**IMAGE, "layers": [{**LAYER, "mediaType": "application/wasm"}]},
    {**IMAGE, "layers": {}},
    {**IMAGE, "layers": [7]},
    {**IMAGE, "layers": [LAYER] * 501},
    {**INDEX, "manifests": INDEX["manifests"] * 513},
]


@pytest.mark.parametrize("document", REFUSED)
def test_malformed_manifests_are_refused(document):
    with pytest.raises(CorruptContent):
        parse(document)


def test_content_must_match_the_announced_type():
    with pytest.raises(CorruptContent):
        parse({key: IMAGE[key] for key in ("schemaVersion", "config", "layers")}, manifest.DOCKER_LIST)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 100_000, b'{"a": NaN}'])
def test_what_is_not_json_is_refused(data):
    with pytest.raises(CorruptContent):
        manifest.parse_manifest(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(["config", "layers", "manifests", "mediaType", "schemaVersion"]), JSON)
def test_any_field_value(key, value):
    with suppress(CorruptContent):
        parse({**IMAGE, key: value})


def entry(architecture, variant="", os="linux"):
    return Descriptor(
        media_type=manifest.OCI_MANIFEST,
        digest=DIGEST,
        size=1,
        platform=Platform(os=os, architecture=architecture, variant=variant),
    )


def test_the_platform_is_chosen():
    index = Index(
        manifests=(
            entry("unknown", os="unknown"),
            entry("amd64", os="windows"),
            entry("arm64", "v8"),
            entry("arm", "v7"),
            entry("amd64"),
        )
    )
    assert manifest.choose(index, Platform(architecture="amd64")) == entry("amd64")
    assert manifest.choose(index, Platform(architecture="arm64")) == entry("arm64", "v8")
    with pytest.raises(ImageNotFound, match="linux/s390x"):
        manifest.choose(index, Platform(architecture="s390x"))


def test_machine_names():
    assert str(manifest.this_platform("x86_64")) == "linux/amd64"
    assert str(manifest.this_platform("aarch64")) == "linux/arm64"


def config(**fields):
    rootfs = {"type": "layers", "diff_ids": [DIGEST]}
    return json.dumps({"rootfs": rootfs, "config": fields}).encode()


def test_config_fields():
    parsed = parse_config(
        config(
            User="app:staff",
            Env=["PATH=/bin", "*", "KUBECONFIG", "=x", "EMPTY="],
            Entrypoint=["/app"],
            Cmd=None,
            WorkingDir="srv/../data",
            Volumes={"/v/../data": {}, "x": {}},
            StopSignal="SIGQUIT",
            ExposedPorts={"80/tcp": {}, "junk": {}},
            Labels={"a": "\x1b]0;", "containerd.io/run": "x", "io.containerd.x": "y", "n": 7},
        )
    )
    has = parsed.config
    assert (has.user, has.env, has.entrypoint, has.cmd) == (
        "app:staff",
        ("PATH=/bin", "EMPTY="),
        ("/app",),
        (),
    )
    assert (has.working_dir, has.volumes, has.stop_signal) == ("/data", ("/data", "/x"), "SIGQUIT")
    assert (has.exposed_ports, has.labels) == (("80/tcp",), {"a": "\x1b]0;"})
    assert parsed.diff_ids == (DIGEST,)


@pytest.mark.parametrize(
    "fields",
    [
        {"User": "a b"},
        {"User": "a\nroot2:x"},
        {"User": 7},
        {"User": ":"},
        {"Env": "PATH=/bin"},
        {"Env": ["A=\0"]},
        {"Entrypoint": "/bin/sh"},
        {"Cmd": [1]},
        {"WorkingDir": "/a\0b"},
        {"WorkingDir": ["x"]},
        {"Volumes": ["/data"]},
        {"Volumes": {"/": {}}},
        {"Volumes": {"/a/..": {}}},
        {"StopSignal": "KILL; x"},
        {"StopSignal": 9},
        {"Labels": []},
        {"Labels": {"io.kubernetes.cri-o.annotations.checkpoint.name": "x"}},
    ],
)
def test_malformed_configs_are_refused(fields):
    with pytest.raises(CorruptContent):
        parse_config(config(**fields))


@pytest.mark.parametrize(
    "rootfs",
    [
        None,
        [],
        {},
        {"type": "x"},
        {"type": "layers", "diff_ids": ["sha256:x"]},
        {"type": "layers", "diff_ids": 1},
    ],
)
def test_malformed_rootfs_is_refused(rootfs):
    with pytest.raises(CorruptContent):
        parse_config(json.dumps({"rootfs": rootfs}).encode())


@given(st.sampled_from(["User", "Env", "Cmd", "Volumes", "Labels", "WorkingDir", "ExposedPorts"]), JSON)
def test_any_config_value(key, value):
    with suppress(CorruptContent):
        parse_config(config(**{key: value}))


def test_chain_ids_are_those_of_the_specification():
    one, two = "sha256:" + "1" * 64, "sha256:" + "2" * 64
    assert chain_ids((one,)) == (one,)
    assert chain_ids((one, two)) == (one, chain_ids((one, two))[1])
    assert (
        chain_ids((one, two))[1] == "sha256:9932074217c35353d2e03a3f5a86549f7c67bfeb0ba53e23d69f4d4c8f7958f5"
    )
    assert chain_ids((one, two)) != chain_ids((two, one))
