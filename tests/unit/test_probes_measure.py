"""Single measurements over loopback sockets: requests as sent, texts as shown."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agent.api.structs import (
    Container,
    ContainerPort,
    EnvVar,
    ExecAction,
    GRPCAction,
    HTTPGetAction,
    HTTPHeader,
    TCPSocketAction,
)
from agent.probes import http
from agent.probes.exec import measure_exec
from agent.probes.grpc import decode_response, encode_request, measure_grpc
from agent.probes.http import measure_http, parse_head, render_request
from agent.probes.measure import Outcome, Target, Unmeasurable, resolve_port
from agent.probes.tcp import measure_tcp

TARGET = Target(Container(name="c"), "id", "127.0.0.1")


@asynccontextmanager
async def server(answer: Callable[[bytes], bytes | None], *, tls: ssl.SSLContext | None = None) -> Any:
    """A loopback server; gives its port and the requests it got. None as answer: never answers."""
    requests: list[bytes] = []
    hold = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await reader.readuntil(b"\r\n\r\n")
            requests.append(request)
            reply = answer(request)
            if reply is None:
                await hold.wait()
            else:
                writer.write(reply)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    listening = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls)
    try:
        yield listening.sockets[0].getsockname()[1], requests
    finally:
        hold.set()
        listening.close()
        await listening.wait_closed()


def status(code: int, extra: str = "") -> Callable[[bytes], bytes]:
    return lambda request: f"HTTP/1.1 {code} Whatever\r\n{extra}Content-Length: 2\r\n\r\nhi".encode()


@pytest.mark.parametrize(
    ("code", "outcome", "text"),
    [
        (200, Outcome.SUCCESS, ""),
        (204, Outcome.SUCCESS, ""),
        (399, Outcome.SUCCESS, "Probe terminated redirects, Response body: hi"),
        (400, Outcome.FAILURE, "HTTP probe failed with statuscode: 400"),
        (500, Outcome.FAILURE, "HTTP probe failed with statuscode: 500"),
    ],
)
async def test_status_codes(code: int, outcome: Outcome, text: str) -> None:
    async with server(status(code)) as (port, _):
        measured = await measure_http(HTTPGetAction(port=port), TARGET, timeout=60)
    assert (measured.outcome, measured.text) == (outcome, text)


async def test_the_request_is_what_the_spec_says() -> None:
    action = HTTPGetAction(
        path="/healthz?full=1",
        port=0,
        http_headers=(HTTPHeader(name="Host", value="example.com"), HTTPHeader(name="X-A", value="1")),
    )
    async with server(status(200)) as (port, requests):
        await measure_http(
            HTTPGetAction(path=action.path, port=port, http_headers=action.http_headers), TARGET, timeout=5
        )
    lines = requests[0].decode().split("\r\n")
    assert lines == [
        "GET /healthz?full=1 HTTP/1.1",
        "Host: example.com",
        "User-Agent: kube-probe/1.37",
        "Accept: */*",
        "X-A: 1",
        "Connection: close",
        "",
        "",
    ]


def test_headers_of_the_spec_replace_ours() -> None:
    request = render_request("http://10.0.0.1:80", (("user-agent", "me"), ("Accept", "")))
    assert request == b"GET / HTTP/1.1\r\nHost: 10.0.0.1:80\r\nuser-agent: me\r\nConnection: close\r\n\r\n"


async def test_redirects_on_the_same_host_are_followed() -> None:
    def answer(request: bytes) -> bytes:
        return (
            status(302, "Location: /there\r\n")(request)
            if request.startswith(b"GET / ")
            else status(500)(request)
        )

    async with server(answer) as (port, requests):
        measured = await measure_http(HTTPGetAction(port=port), TARGET, timeout=60)
    assert measured.text == "HTTP probe failed with statuscode: 500"
    assert len(requests) == 2


async def test_a_redirect_elsewhere_is_a_warning() -> None:
    async with server(status(301, "Location: http://elsewhere.example/\r\n")) as (port, requests):
        measured = await measure_http(HTTPGetAction(port=port), TARGET, timeout=60)
    assert measured.outcome is Outcome.SUCCESS and measured.warning
    assert len(requests) == 1


async def test_redirect_loops_end() -> None:
    async with server(status(302, "Location: /\r\n")) as (port, requests):
        measured = await measure_http(HTTPGetAction(port=port), TARGET, timeout=60)
    assert measured.text.endswith("stopped after 10 redirects")
    assert len(requests) == 10


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"garbage\r\n\r\n", "malformed HTTP response"),
        (b"", "EOF"),
        (b"HTTP/1.1 2", "malformed HTTP response"),
    ],
)
async def test_answers_that_are_not_http(answer: bytes, text: str) -> None:
    async with server(lambda request: answer) as (port, _):
        measured = await measure_http(HTTPGetAction(port=port), TARGET, timeout=60)
    assert measured.outcome is Outcome.FAILURE
    assert text in measured.text


async def test_no_answer_in_time() -> None:
    async with server(lambda request: None) as (port, _):
        measured = await measure_http(HTTPGetAction(port=port), TARGET, timeout=0.05)
    assert measured.text.startswith(f'Get "http://127.0.0.1:{port}/": context deadline exceeded')


async def test_a_closed_port() -> None:
    async with server(status(200)) as (port, _):
        pass
    measured = await measure_http(HTTPGetAction(port=port), TARGET, timeout=60)
    refused = f"dial tcp 127.0.0.1:{port}: connect: connection refused"
    assert measured.text == f'Get "http://127.0.0.1:{port}/": {refused}'
    assert (await measure_tcp(TCPSocketAction(port=port), TARGET, timeout=60)).text == refused


async def test_https_to_a_plain_server_fails() -> None:
    async with server(status(200)) as (port, _):
        measured = await measure_http(HTTPGetAction(port=port, scheme="HTTPS"), TARGET, timeout=0.2)
    assert measured.outcome is Outcome.FAILURE


def self_signed(directory: Path) -> ssl.SSLContext:
    """A server's context with a certificate that nobody signed, for another name, long expired."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "elsewhere.example")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime(2001, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2001, 1, 2, tzinfo=UTC))
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    file = directory / "pair.pem"
    file.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(pem)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context


async def test_https_does_not_check_certificates(tmp_path: Path) -> None:
    async with server(status(200), tls=self_signed(tmp_path)) as (port, requests):
        measured = await measure_http(HTTPGetAction(port=port, scheme="HTTPS"), TARGET, timeout=60)
    assert measured.outcome is Outcome.SUCCESS
    assert requests[0].startswith(b"GET / HTTP/1.1")


async def test_tcp_opens() -> None:
    async with server(status(200)) as (port, _):
        measured = await measure_tcp(TCPSocketAction(port=port), TARGET, timeout=60)
    assert measured.outcome is Outcome.SUCCESS


def test_ports_by_name() -> None:
    container = Container(name="c", ports=(ContainerPort(name="web", container_port=8080),))
    assert resolve_port("web", container) == 8080
    assert resolve_port("81", container) == 81
    with pytest.raises(Unmeasurable, match="couldn't find port: 'admin'"):
        resolve_port("admin", container)
    with pytest.raises(Unmeasurable, match="invalid port number: 0"):
        resolve_port(0, container)


async def test_exec_expands_literal_environment_only() -> None:
    seen: list[tuple[str, ...]] = []

    async def exec_sync(container_id: str, argv: Any, timeout: float) -> tuple[int, bytes]:
        seen.append(argv)
        return 3, b"\xffno"

    container = Container(name="c", env=(EnvVar(name="A", value="1"),))
    action = ExecAction(command=("cat", "$(A)", "$(B)", "$$(A)"))
    measured = await measure_exec(action, Target(container, "id", ""), timeout=1, exec_sync=exec_sync)
    assert seen == [("cat", "1", "$(B)", "$(A)")]
    assert measured.text == "\ufffdno"


def test_heads() -> None:
    assert parse_head(b"HTTP/1.1 302 Found\r\nlocation:  /x ").location == "/x"
    with pytest.raises(http.BadAnswer):
        parse_head(b"HTTP/2 200")


def test_grpc_messages() -> None:
    assert encode_request("") == b""
    assert encode_request("a" * 200)[:3] == b"\x0a\xc8\x01"
    assert decode_response(b"") == 0
    assert decode_response(b"\x12\x02xx\x08\x01") == 1
    with pytest.raises(ValueError, match="truncated"):
        decode_response(b"\x08\x80")


@pytest.mark.parametrize(
    ("status_byte", "text"),
    [(b"\x08\x01", ""), (b"\x08\x02", 'service unhealthy (responded with "NOT_SERVING")')],
)
async def test_grpc_health(status_byte: bytes, text: str) -> None:
    import grpc

    async def check(request: bytes, context: Any) -> bytes:
        return status_byte

    handlers: dict[str, Awaitable[bytes]] = {"Check": grpc.unary_unary_rpc_method_handler(check)}
    running = grpc.aio.server()
    running.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("grpc.health.v1.Health", handlers),)
    )
    port = running.add_insecure_port("127.0.0.1:0")
    await running.start()
    try:
        measured = await measure_grpc(GRPCAction(port=port, service="x"), TARGET, timeout=60)
    finally:
        await running.stop(0)
    assert measured.text == text
