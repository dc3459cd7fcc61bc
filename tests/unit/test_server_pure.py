"""The parts of the kubelet server that are pure: routes, authorization, parameters, log decoding,
metrics text."""

import pytest
from apikit import ScriptedTransport
from hypothesis import given
from hypothesis import strategies as st

from agent.api import errors
from agent.api.client import ApiClient
from agent.server import exposition, parameters, routes, streams, usage
from agent.server.auth import ANONYMOUS, AuthSettings, Gate, Refused, Unknown, User, certificate_user
from agent.server.handlers import Handlers
from agent.server.logs import Decoder, LogOptions, tail_offset
from agent.server.parameters import BadParameter
from agent.server.usage import ContainerReading, Reading
from host.clocks import FakeClock

PEER = {"subject": ((("organizationName", "system:masters"),), (("commonName", "admin"),))}


def test_every_route_has_a_handler_and_asks_for_something():
    for route in routes.ROUTES:
        assert route.subresources, route
        assert hasattr(Handlers, route.handler), route


def test_streams_need_create_even_by_get():
    for path in ("/exec/ns/p/c", "/attach/ns/p/uid/c", "/portForward/ns/p"):
        match = routes.find("GET", path)
        assert match.route.verb("GET") == "create"
        assert match.route.subresources == ("proxy",)
    assert routes.find("GET", "/containerLogs/ns/p/c").route.verb("GET") == "get"


@pytest.mark.parametrize(
    "path",
    ["/", "/exec", "/exec/ns/p", "/exec/ns//c", "/logs/", "/debug/pprof", "/containerLogs/a/b/c/d", "//pods"],
)
def test_what_is_not_in_the_table_does_not_exist(path):
    assert routes.find("GET", path).route is None


def test_a_wrong_method_is_known_as_such():
    assert routes.find("DELETE", "/pods").allowed is False


def test_certificate_users():
    user = certificate_user(PEER)
    assert user == User("admin", ("system:masters", "system:authenticated"))
    assert certificate_user({}) is None
    assert certificate_user(None) is None
    assert certificate_user({"subject": ((("organizationName", "o"),),)}) is None


def gate(answer, **settings):
    transport, clock = ScriptedTransport(answer), FakeClock()
    made = Gate(ApiClient(transport), node_name="n1", settings=AuthSettings(**settings), clock=clock)
    return made, transport, clock


async def test_nobody_without_credentials():
    made, _, _ = gate(lambda *_: {})
    for header in ("", "Basic x", "Bearer ", "bearer"):
        with pytest.raises(Unknown):
            await made.authenticate(None, header)
    assert (await made.authenticate(PEER, "")).name == "admin"


async def test_anonymous_only_where_it_is_allowed():
    made, _, _ = gate(lambda *_: {}, anonymous=True)
    assert await made.authenticate(None, "") == ANONYMOUS
    with pytest.raises(Unknown):
        await made.authenticate(None, "Bearer wrong")


async def test_tokens_are_reviewed_once_and_not_kept():
    reviewed = {"status": {"authenticated": True, "user": {"username": "u", "groups": ["g"]}}}
    made, transport, clock = gate(lambda *_: reviewed)
    for _ in range(3):
        assert (await made.authenticate(None, "Bearer secret")).groups == ("g",)
    assert len(transport.requests) == 1
    assert "secret" not in str(vars(made._tokens))
    await clock.advance(121)
    await made.authenticate(None, "Bearer secret")
    assert len(transport.requests) == 2


async def test_read_access_does_not_run_commands():
    def review(method, path, query, body):
        wanted = body["spec"]["resourceAttributes"]
        return {"status": {"allowed": (wanted["verb"], wanted["subresource"]) == ("get", "proxy")}}

    made, _, _ = gate(review)
    user = User("reader")
    await made.authorize(user, verb="get", subresources=("pods", "proxy"), path="/pods")
    route = routes.find("GET", "/exec/ns/p/c").route
    with pytest.raises(Refused, match="verb=create"):
        await made.authorize(user, verb=route.verb("GET"), subresources=route.subresources, path="/exec")


async def test_authorization_fails_closed_and_is_not_remembered():
    answers = [errors.Unreachable("away"), {"status": {"allowed": True}}]
    made, transport, clock = gate(lambda *_: answers.pop(0) if answers else {"status": {}})
    with pytest.raises(Refused):
        await made.authorize(User("u"), verb="get", subresources=("metrics",), path="/metrics")
    for _ in range(2):
        await made.authorize(User("u"), verb="get", subresources=("metrics",), path="/metrics")
    assert len(transport.requests) == 2
    await clock.advance(301)
    with pytest.raises(Refused):
        await made.authorize(User("u"), verb="get", subresources=("metrics",), path="/metrics")


async def test_without_an_api_server_nobody_may():
    made = Gate(None, node_name="n1", settings=AuthSettings(), clock=FakeClock())
    with pytest.raises(Refused):
        await made.authorize(User("u"), verb="get", subresources=("metrics",), path="/metrics")


def record(text: str, *, tag="F", stream="stdout", stamp="2026-11-21T06:00:00.000000001Z") -> bytes:
    return f"{stamp} {stream} {tag} {text}\n".encode()


def decode(data: bytes, **options) -> bytes:
    return Decoder(LogOptions(**options)).feed(data)


def test_partial_records_become_one_line():
    data = record("ab", tag="P") + record("cd") + record("e")
    assert decode(data) == b"abcd\ne\n"
    stamp = b"2026-11-21T06:00:00.000000001Z "
    assert decode(data, timestamps=True) == stamp + b"abcd\n" + stamp + b"e\n"


def test_since_stream_and_limit():
    data = record("old", stamp="2026-11-21T05:00:00Z") + record("err", stream="stderr") + record("new")
    assert decode(data, since=1795240800_000000000) == b"err\nnew\n"
    assert decode(data, stream="stderr") == b"err\n"
    decoder = Decoder(LogOptions(limit=5))
    assert decoder.feed(data) == b"old\ne"
    assert decoder.done


def test_broken_records_are_skipped_and_counted():
    decoder = Decoder(LogOptions())
    assert decoder.feed(b"garbage\n\n\0\0\0\n" + record("fine")) == b"fine\n"
    assert decoder.malformed == 2
    decoder.feed(b"2026-11-21T06:00:00Z stdout F half a rec")
    decoder.end()
    assert decoder.feed(record("next file")) == b"next file\n"


@given(
    st.lists(st.sampled_from("PF"), max_size=30), st.integers(0, 12), st.integers(1, 40), st.integers(1, 60)
)
def test_the_tail_is_the_end_of_the_whole(tags, lines, size, block):
    data = b"".join(record("x" * (size + number % 5), tag=tag) for number, tag in enumerate(tags))
    start = tail_offset(len(data), lines, lambda offset, length: data[offset : offset + length], block=block)
    everything = decode(data + record("")).splitlines(keepends=True)[: tags.count("F")]
    tail = decode(data[start:])
    if tags and tags[-1] == "P":
        return  # an unfinished line at the end: only that nothing crashes
    assert tail == b"".join(everything[max(0, len(everything) - lines) :]) if lines else tail == b""


@given(st.binary(max_size=300), st.integers(0, 5), st.integers(1, 50))
def test_no_bytes_confuse_decoder_or_tail(data, lines, block):
    decode(data)
    start = tail_offset(len(data), lines, lambda offset, length: data[offset : offset + length], block=block)
    assert 0 <= start <= len(data)


def test_log_parameters():
    options, previous = parameters.log_options(
        {"follow": "true", "tailLines": "5", "sinceSeconds": "10", "previous": "true"}, now=100.0
    )
    assert (options.follow, options.tail, options.since, previous) == (True, 5, 90_000_000_000, True)
    for name, text in {"tailLines": "-1", "limitBytes": "0", "sinceTime": "now", "stream": "x"}.items():
        with pytest.raises(BadParameter, match=name):
            parameters.log_options({name: text}, now=0.0)


def test_stream_parameters():
    options = parameters.stream_options({"output": "1", "error": "1", "tty": "1"}, ["sh"])
    assert (options.tty, options.stdout, options.stderr) == (True, True, False)
    with pytest.raises(BadParameter, match="at least 1"):
        parameters.stream_options({"tty": "1"}, ["sh"])
    assert parameters.ports(["80,443", "8080"]) == (80, 443, 8080)
    with pytest.raises(BadParameter, match="port '0'"):
        parameters.ports(["0"])


def test_the_head_for_the_stream_server():
    headers = [
        ("Host", "x"),
        ("Authorization", "Bearer t"),
        ("Upgrade", "SPDY/3.1"),
        ("Connection", "Upgrade"),
    ]
    head = streams.request_head("POST", "http://127.0.0.1:99/exec/tok?x=1", headers)
    assert head.split(b"\r\n") == [
        b"POST /exec/tok?x=1 HTTP/1.1",
        b"Host: 127.0.0.1:99",
        b"Upgrade: SPDY/3.1",
        b"Connection: Upgrade",
        b"",
        b"",
    ]
    with pytest.raises(streams.StreamError):
        streams.request_head("GET", "http://h/", [("X", "a\r\nEvil: 1")])
    assert streams.response_status(b"HTTP/1.1 101 Switching Protocols\r\n\r\n") == 101
    assert streams.response_status(b"garbage") == 0


def test_exposition_escapes_labels():
    family = exposition.Family("m", "gauge", "h", (exposition.Sample(1.5, {"a": 'x"\n\\'}, 7),))
    assert exposition.render([family]) == '# HELP m h\n# TYPE m gauge\nm{a="x\\"\\n\\\\"} 1.5 7\n'


def test_a_histogram_counts_by_upper_bound():
    histogram = exposition.Histogram((0.5, 1, 2), {"kind": "x"})
    for value in (0.5, 0.7, 5):
        histogram.observe(value)
    family = exposition.Family("m", "histogram", "h", histogram.samples())
    assert exposition.render([family]).splitlines()[1:] == [
        "# TYPE m histogram",
        'm_bucket{kind="x",le="0.5"} 1',
        'm_bucket{kind="x",le="1"} 2',
        'm_bucket{kind="x",le="2"} 2',
        'm_bucket{kind="x",le="+Inf"} 3',
        'm_sum{kind="x"} 6.2',
        'm_count{kind="x"} 3',
    ]


def test_resource_metrics_and_summary():
    node = Reading(time=2_000_000_000, cpu=5_000_000_000, working_set=10, started=1.0)
    readings = [
        ContainerReading("d", "p", "u", name, Reading(1_000_000_000, 1_500_000_000, 100, 5.0))
        for name in "ab"
    ]
    text = exposition.render(usage.resource_metrics(node, readings, error=False))
    assert 'container_cpu_usage_seconds_total{container="a",namespace="d",pod="p"} 1.5 1000' in text
    assert 'pod_memory_working_set_bytes{namespace="d",pod="p"} 200 1000' in text
    assert "node_cpu_usage_seconds_total 5 2000" in text
    assert "\nscrape_error 0\n" in text
    body = usage.summary("n1", node, readings, filesystem={"availableBytes": 1})
    assert body["pods"][0]["cpu"]["usageCoreNanoSeconds"] == 3_000_000_000
    assert [item["name"] for item in body["pods"][0]["containers"]] == ["a", "b"]
