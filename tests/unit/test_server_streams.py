"""The kubelet server on real loopback sockets: TLS, refusals, upgraded connections, followed logs."""

import asyncio
import ssl
from contextlib import asynccontextmanager
from types import SimpleNamespace

import aiohttp
import pytest

from agent.api import errors
from agent.api.client import ApiClient
from agent.api.kubeconfig import Access
from agent.api.resources import PODS
from agent.api.structs import (
    ContainerState,
    ContainerStateRunning,
    ContainerStatus,
    ObjectMeta,
    Pod,
    PodStatus,
)
from agent.api.transport import HttpTransport
from agent.server import certificates
from agent.server.auth import Refused, Unknown, User
from agent.server.handlers import Handlers
from agent.server.logfiles import KEPT, LogReader
from agent.server.logs import LogOptions
from agent.server.server import KubeletServer, Listen
from host.errors import HostError, InputError


class Failure(Exception):
    """What the fake runtime raises."""


class FakePods:
    def __init__(self, log_path=""):
        running = ContainerState(running=ContainerStateRunning(started_at="2026-01-01T00:00:00Z"))
        status = ContainerStatus(name="c", state=running, container_id="x://id")
        self.pod = Pod(
            metadata=ObjectMeta(name="p", namespace="d", uid="u"),
            status=PodStatus(phase="Running", container_statuses=(status,)),
        )
        self.path = log_path

    def pods(self):
        return [self.pod]

    def find(self, namespace, name, uid=None):
        return self.pod if (namespace, name) == ("d", "p") and uid in (None, "u") else None

    def container_id(self, namespace, name, container, *, previous=False):
        return "id" if container == "c" else None

    def sandbox_id(self, namespace, name):
        return "box"

    def log_path(self, namespace, name, container, *, previous=False):
        return self.path


class FakeRuntime:
    def __init__(self, url=""):
        self.url = url

    async def exec_url(self, container_id, command, *, tty, stdin, stdout, stderr):
        if command == ("refused",):
            raise Failure("the runtime said no")
        return self.url

    async def container_stats(self, *, sandbox_id=""):
        raise Failure("no statistics")


class OpenGate:
    async def authenticate(self, peer, authorization):
        if not authorization:
            raise Unknown
        return User(authorization)

    async def authorize(self, user, *, verb, subresources, path):
        if user.name == "stranger":
            raise Refused("Forbidden")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return certificates.ensure_self_signed(tmp_path_factory.mktemp("pki"), hostname="n1", ips=["127.0.0.1"])


@asynccontextmanager
async def serving(pair, tmp_path, *, runtime=None, log_path=""):
    handlers = Handlers(
        node_name="n1",
        pods=FakePods(str(log_path)),
        streams=runtime or FakeRuntime(),
        runtime_failures=(Failure,),
        root=tmp_path,
        config={},
    )
    port = free_port()
    server = KubeletServer(
        listen=Listen("127.0.0.1", port, "127.0.0.1", 0),
        context=lambda: certificates.server_context(pair, client_ca=None),
        gate=OpenGate(),
        handlers=handlers,
    )
    task = asyncio.create_task(server.run())
    await server.started.wait()
    trust = ssl.create_default_context(cafile=pair.cert)
    try:
        async with aiohttp.ClientSession(
            f"https://127.0.0.1:{port}", connector=aiohttp.TCPConnector(ssl=trust)
        ) as session:
            yield SimpleNamespace(session=session, port=port, trust=trust)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


ME = {"Authorization": "me"}


async def test_refusals_come_before_existence(pair, tmp_path):
    async with serving(pair, tmp_path) as served:
        for path, headers, status in (
            ("/pods", {}, 401),
            ("/nowhere", {}, 401),
            ("/pods", {"Authorization": "stranger"}, 403),
            ("/nowhere", {"Authorization": "stranger"}, 403),
            ("/nowhere", ME, 404),
            ("/pods", ME, 200),
            ("/metrics", ME, 200),
            ("/metrics/resource", ME, 200),
            ("/stats/summary", ME, 200),
            ("/exec/d/p/c", ME, 400),
            ("/exec/d/p/c?command=x&output=1&tty=", ME, 502),
            ("/exec/d/p/c?command=refused&output=1", ME, 500),
            ("/exec/d/p/none?command=x&output=1", ME, 404),
            ("/exec/d/none/c?command=x&output=1", ME, 404),
            ("/containerLogs/d/p/none", ME, 400),
        ):
            async with served.session.get(path, headers=headers) as response:
                assert response.status == status, (path, headers)
        async with served.session.get("/metrics/resource", headers=ME) as response:
            assert "\nscrape_error 1\n" in await response.text()
        async with served.session.put("/pods", headers=ME) as response:
            assert response.status == 405


@asynccontextmanager
async def stream_server(answer: bytes):
    """Answers an upgrade and then echoes in capitals, as a runtime would in its own protocol."""

    async def talk(reader, writer):
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer)
        while b"101" in answer and (data := await reader.read(65536)):
            writer.write(data.upper())
            await writer.drain()
        writer.close()

    heads: list[bytes] = []
    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/exec/token", heads
    finally:
        server.close()
        await server.wait_closed()


@pytest.mark.parametrize("protocol", ["websocket", "SPDY/3.1"])
async def test_bytes_pass_unchanged_after_an_upgrade(pair, tmp_path, protocol):
    answer = f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: {protocol}\r\n\r\nhello".encode()
    async with (
        stream_server(answer) as (url, heads),
        serving(pair, tmp_path, runtime=FakeRuntime(url)) as served,
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port, ssl=served.trust)
        writer.write(
            f"POST /exec/d/p/c?command=sh&output=1 HTTP/1.1\r\nHost: n1\r\nAuthorization: me\r\n"
            f"Connection: Upgrade\r\nUpgrade: {protocol}\r\nX-Extra: 1\r\n\r\n".encode()
        )
        assert await reader.readexactly(len(answer)) == answer
        blob = b"abc" * 500_000
        writer.write(blob)
        assert await reader.readexactly(len(blob)) == blob.upper()
        writer.close()
        await writer.wait_closed()
    assert b"X-Extra: 1" in heads[0]
    assert b"Authorization" not in heads[0]
    assert heads[0].startswith(b"POST /exec/token HTTP/1.1\r\n")


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\n\r\n",
        b"HTTP/1.1 403 Forbidden\r\n\r\nno",
        b"nonsense\r\n\r\n",
    ],
)
async def test_other_answers_are_not_followed(pair, tmp_path, answer):
    async with (
        stream_server(answer) as (url, _),
        serving(pair, tmp_path, runtime=FakeRuntime(url)) as served,
        served.session.get("/exec/d/p/c?command=x&output=1", headers=ME) as response,
    ):
        assert response.status == 502
        assert "location" not in response.headers


def record(text: str) -> str:
    return f"2026-11-21T06:00:00Z stdout F {text}\n"


async def test_following_survives_a_rotation_and_ends_with_the_container(tmp_path):
    path, rotated = tmp_path / "0.log", tmp_path / "0.log.20261121"
    path.write_text(record("one"))
    seen = bytearray()
    told = asyncio.Event()
    alive = True

    async def write(data):
        seen.extend(data)
        told.set()

    reader = LogReader(path, options=LogOptions(follow=True), running=lambda: alive, write=write)
    task = asyncio.create_task(reader.run())

    async def until(text):
        while text not in seen:
            told.clear()
            await asyncio.wait_for(told.wait(), 5)

    await until(b"one\n")
    with path.open("a") as old:
        path.rename(rotated)
        old.write(record("two"))
        old.flush()
        await until(b"two\n")
        old.write(record("three"))
        old.flush()
        path.write_text(record("four"))
        await until(b"four\n")
    alive = False
    with path.open("a") as file:
        file.write(record("five"))
    await asyncio.wait_for(task, 5)
    assert seen == b"one\ntwo\nthree\nfour\nfive\n"


async def follow_with_a_stuck_client(folder, rotations):
    """What a follower gives out whose client takes nothing while the log is rotated so often."""
    path = folder / "0.log"
    path.write_text(record("line 0"))
    seen, stuck, go, alive = bytearray(), asyncio.Event(), asyncio.Event(), True

    async def write(data):
        stuck.set()
        await go.wait()
        seen.extend(data)

    reader = LogReader(path, options=LogOptions(follow=True), running=lambda: alive, write=write)
    task = asyncio.create_task(reader.run())
    await asyncio.wait_for(stuck.wait(), 10)
    for number in range(1, rotations + 1):
        waiting = len(reader._next)
        path.rename(folder / "old")
        path.write_text(record(f"line {number}"))
        (folder / "old").unlink()
        async with asyncio.timeout(60):
            while len(reader._next) == waiting < KEPT:
                await asyncio.sleep(0.005)
    alive = False
    go.set()
    await asyncio.wait_for(task, 10)
    return seen.decode().splitlines()


async def test_a_stuck_client_loses_no_line_over_rotations(tmp_path):
    assert await follow_with_a_stuck_client(tmp_path, KEPT) == [f"line {n}" for n in range(KEPT + 1)]


async def test_a_client_stuck_for_too_long_goes_on_with_what_is_there(tmp_path):
    lines = await follow_with_a_stuck_client(tmp_path, KEPT + 3)
    assert lines == [*(f"line {n}" for n in range(KEPT + 1)), f"line {KEPT + 3}"]


async def test_a_log_that_is_a_link_is_not_read(tmp_path):
    (tmp_path / "secret").write_text("root:x")
    (tmp_path / "0.log").symlink_to(tmp_path / "secret")

    async def write(data):
        raise AssertionError(data)

    reader = LogReader(tmp_path / "0.log", options=LogOptions(), running=bool, write=write)
    with pytest.raises(HostError):
        await reader.run()


async def test_logs_over_http(pair, tmp_path):
    path = tmp_path / "0.log"
    path.write_text("".join(record(f"line {number}") for number in range(100)))
    async with serving(pair, tmp_path, log_path=path) as served:
        async with served.session.get("/containerLogs/d/p/c?tailLines=2", headers=ME) as response:
            assert await response.text() == "line 98\nline 99\n"
        async with served.session.get("/containerLogs/d/p/c?tailLines=x", headers=ME) as response:
            assert response.status == 400
            assert "tailLines" in await response.text()


def test_a_certificate_is_kept_until_an_address_changes(tmp_path):
    first = certificates.ensure_self_signed(tmp_path, hostname="n1", ips=["10.0.0.1"])
    before = first.cert.read_bytes()
    certificates.ensure_self_signed(tmp_path, hostname="n1", ips=["10.0.0.1"])
    assert first.cert.read_bytes() == before
    certificates.ensure_self_signed(tmp_path, hostname="n1", ips=["10.0.0.1", "fd00::1"])
    assert first.cert.read_bytes() != before
    assert first.key.stat().st_mode & 0o777 == 0o600


def test_a_certificate_that_cannot_be_used_is_named(tmp_path):
    wrong = certificates.Pair(tmp_path / "none.crt", tmp_path / "none.key")
    with pytest.raises(InputError, match=r"none\.crt"):
        certificates.server_context(wrong, client_ca=None)


async def test_a_port_in_use_is_one_clear_line(pair, tmp_path):
    async with serving(pair, tmp_path) as served:
        second = KubeletServer(
            listen=Listen("127.0.0.1", served.port, "127.0.0.1", 0),
            context=lambda: certificates.server_context(pair, client_ca=None),
            gate=OpenGate(),
            handlers=SimpleNamespace(table=dict),
        )
        with pytest.raises(InputError, match=f"port {served.port} is in use"):
            await second.run()


async def test_the_transport_trusts_the_named_ca_only(pair, tmp_path):
    async with serving(pair, tmp_path) as served:
        url = f"https://127.0.0.1:{served.port}"
        other = certificates.ensure_self_signed(tmp_path, hostname="x", ips=["127.0.0.1"])
        for ca, kind, words in (
            (pair.cert, errors.NotFound, "404 page not found"),
            (other.cert, errors.Unreachable, "the check with the CA in K"),
        ):
            transport = HttpTransport(Access(url, source="K", ca_file=ca, token="me"))
            with pytest.raises(kind, match=words):
                await ApiClient(transport).get(PODS, "p", namespace="d")
            await transport.close()


async def test_a_server_that_is_not_there():
    transport = HttpTransport(Access(f"http://127.0.0.1:{free_port()}"))
    with pytest.raises(errors.Unreachable, match="cannot connect"):
        await transport.request("GET", "/version")
    await transport.close()
