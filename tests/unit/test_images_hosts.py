"""Mirrors (hosts.toml) and authentication challenges."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri.images import challenge
from cri.images.challenge import Challenge, parse_challenges, token_url
from cri.images.errors import AccessDenied
from cri.images.hosts import endpoints
from cri.images.model import Credentials
from host.errors import InputError


def write(folder, host, text):
    (folder / host).mkdir()
    (folder / host / "hosts.toml").write_text(text)


def test_without_configuration_only_https(tmp_path):
    (one,) = endpoints("docker.io", tmp_path)
    assert (one.origin, one.path, one.mirror) == ("https://registry-1.docker.io", "/v2", False)
    (two,) = endpoints("localhost:5000", None)
    assert two.origin == "https://localhost:5000"


def test_mirrors_come_first_and_the_default_file_is_last_resort(tmp_path):
    write(tmp_path, "_default", 'server = "http://all.test:5000"\n')
    write(
        tmp_path,
        "docker.io",
        """
server = "https://registry-1.docker.io"
[host."http://mirror.test:5000/cache"]
  capabilities = ["pull"]
[host."https://other.test/v2/x"]
  override_path = true
  ca = "ca.pem"
  [host."https://other.test/v2/x".header]
    x-team = ["a", "b"]
""",
    )
    first, second, third = endpoints("docker.io", tmp_path)
    assert (first.origin, first.path, first.mirror) == ("http://mirror.test:5000", "/cache/v2", True)
    assert first.capabilities == {"pull"}
    assert (second.path, second.ca) == ("/v2/x", (str(tmp_path / "docker.io/ca.pem"),))
    assert second.headers == (("x-team", "a"), ("x-team", "b"))
    assert (third.origin, third.mirror) == ("https://registry-1.docker.io", False)
    (any_host,) = endpoints("quay.io", tmp_path)
    assert (any_host.origin, any_host.mirror) == ("http://all.test:5000", True)


def test_ports_in_folder_names_and_no_server_twice(tmp_path):
    text = 'server = "http://reg.test:5000"\n[host."http://reg.test:5000"]\n'
    write(tmp_path, "reg.test_5000_", text)
    (one,) = endpoints("reg.test:5000", tmp_path)
    assert (one.scheme, one.mirror) == ("http", False)


@pytest.mark.parametrize(
    "text",
    [
        "server = ",
        'server = "ftp://x"',
        'server = "https://user:pw@x"',
        'server = "https://x?token=1"',
        'server = "https://x:99999999"',
        "server = 7",
        "host = 1",
        '[host]\n"https://x" = 1',
        '[host."https://x"]\ncapabilities = ["fly"]',
        '[host."https://x"]\nskip_verify = "yes"',
        '[host."https://x"]\nca = 7',
        '[host."https://x"]\nclient = [["a"]]',
        '[host."https://x"]\nheader = 1',
    ],
)
def test_malformed_files_are_input_errors(tmp_path, text):
    write(tmp_path, "_default", text)
    with pytest.raises(InputError, match=r"hosts\.toml"):
        endpoints("quay.io", tmp_path)


def test_missing_ca_is_an_input_error(tmp_path):
    write(tmp_path, "_default", 'server = "https://x"\nca = "gone.pem"\n')
    (one,) = endpoints("quay.io", tmp_path)
    with pytest.raises(InputError, match="certificate"):
        one.ssl_context()


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ('Bearer realm="https://a/t",service="s",scope="x:y"', [("bearer", {"realm", "service", "scope"})]),
        ('Basic realm="x"', [("basic", {"realm"})]),
        ('Negotiate, Basic realm="a, b=\\"c\\""', [("negotiate", set()), ("basic", {"realm"})]),
        ("BEARER realm=https", [("bearer", {"realm"})]),
        ('Bearer realm="a" , error = "x"', [("bearer", {"realm", "error"})]),
        ("", []),
        ("=,=", []),
        ('Bearer realm="open', [("bearer", set())]),
    ],
)
def test_challenges(header, found):
    assert [(item.scheme, set(item.params)) for item in parse_challenges(header)] == found


@given(st.text(max_size=300))
def test_any_challenge_header(header):
    parse_challenges(header)


def bearer(realm, **params):
    return Challenge(scheme="bearer", params={"realm": realm, **params})


def test_token_address():
    url = token_url(
        bearer("https://auth.test/token?a=1", service="s"), registry_scheme="https", repository="r/x"
    )
    assert url == "https://auth.test/token?a=1&scope=repository%3Ar%2Fx%3Apull&service=s"


@pytest.mark.parametrize(
    "realm",
    [
        "",
        "http://auth.test/token",
        "file:///etc/passwd",
        "https://169.254.169.254/token",
        "https://[fe80::1]/token",
        "https://[::ffff:169.254.169.254]/x",
        "https://user:pw@auth.test/",
        "https://auth.test:x/",
        "https://[broken/",
        "https://auth.test/\r\nX: y",
    ],
)
def test_token_services_that_get_no_secret(realm):
    with pytest.raises(AccessDenied):
        token_url(bearer(realm), registry_scheme="https", repository="r")


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b'{"token": 7}', b'{"token": "a b"}', b'{"token": "a\\nb"}']
)
def test_answers_without_a_token(data):
    with pytest.raises(AccessDenied):
        challenge.parse_token(data)


def test_credentials():
    pair = base64.b64encode(b"me:pw:x").decode()
    assert challenge.user_of(Credentials(auth=pair)) == ("me", "pw:x")
    assert challenge.basic(Credentials(username="me", password="pw:x")) == f"Basic {pair}"
    assert challenge.basic(Credentials()) == ""
    with pytest.raises(AccessDenied):
        challenge.user_of(Credentials(auth="%%%"))
    assert "secret" not in repr(Credentials(password="secret", identity_token="secret"))


@pytest.mark.parametrize(
    ("address", "domain", "yes"),
    [
        ("", "docker.io", True),
        ("https://index.docker.io/v1/", "docker.io", True),
        ("registry.test:5000", "registry.test:5000", True),
        ("https://registry.test", "evil.test", False),
        ("registry.test", "registry.test:5000", False),
    ],
)
def test_credentials_belong_to_their_server(address, domain, yes):
    netloc = "registry-1.docker.io" if domain == "docker.io" else domain
    assert challenge.applies(Credentials(server_address=address), netloc, domain) is yes
