"""Image references and digests."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri.images import reference
from host.errors import InputError

HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1.36", "docker.io/library/busybox:1.36"),
        ("index.docker.io/busybox", "docker.io/library/busybox:latest"),
        ("me/app", "docker.io/me/app:latest"),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000/app:v1", "localhost:5000/app:v1"),
        ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
        ("[::1]:5000/a/b", "[::1]:5000/a/b:latest"),
        (f"busybox@sha256:{HEX}", f"docker.io/library/busybox@sha256:{HEX}"),
        (f"busybox:1.36@sha256:{HEX}", f"docker.io/library/busybox@sha256:{HEX}"),
        ("a/b__c/d.e-f---g", "docker.io/a/b__c/d.e-f---g:latest"),
    ],
)
def test_defaults_are_filled_in(text, full):
    assert str(reference.parse(text)) == full


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Busybox",
        "busybox:",
        "busybox:.x",
        "busybox:" + "t" * 129,
        "a//b",
        "a/../b",
        "../b",
        "/b",
        "b/",
        "a b",
        "busybox\n",
        "busybox:1\n",
        "http://x/y",
        "x.io/" + "a" * 256,
        "a" * 600,
        f"busybox@sha256:{HEX[:-1]}",
        f"busybox@sha256:{HEX.upper()}",
        f"busybox@sha512:{HEX}",
        f"busybox@sha256:{HEX}\n",
        "busybox@sha256:../../x",
        "busybox@",
        "x.io:99999999/a",
        "bücher/app",
        "a__.b",
    ],
)
def test_malformed_references_are_refused(text):
    with pytest.raises(InputError):
        reference.parse(text)


@given(st.text(max_size=80))
def test_any_text_parses_or_is_an_input_error(text):
    try:
        parsed = reference.parse(text)
    except InputError:
        return
    assert ".." not in parsed.name.split("/")
    assert reference.parse(str(parsed)) == parsed


@pytest.mark.parametrize("text", [HEX, f"sha256:{HEX}"[:-1], f"sha256:{HEX}0", None, 7, f"sha256:{HEX}\n"])
def test_malformed_digests_are_refused(text):
    assert not reference.is_digest(text)
    with pytest.raises(InputError):
        reference.parse_digest(text)


def test_ids_and_prefixes():
    assert reference.parse_id(f"sha256:{HEX}") == HEX
    assert reference.parse_id("0123") == "0123"
    assert reference.parse_id("01") == ""
    assert reference.parse_id("busybox") == ""
