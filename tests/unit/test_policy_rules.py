"""Planned rules, judged by packets: a slow reading of the specification says who may reach whom.

Node n1 has pods a0 and a1 (10.1.0.x), n2 has b0, b1 (10.2.0.x); each has an IPv6 address too.
"""

from __future__ import annotations

import msgspec
import policy_oracle
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_model import FakeNft, passes

from agent.api.structs import NetworkPolicy
from agent.policy.model import parse
from agent.policy.objects import PodFact
from agent.policy.picture import Picture
from agent.policy.verdict import Flow

LABELS = [{"app": "web"}, {"app": "db"}, {"app": "web", "tier": "x"}, {}]
NAMESPACES = ["ns1", "ns2"]
PORTS = [80, 81, 8080]
OUTSIDE = ["203.0.113.7", "2001:db8::7"]
NODES = {"a": "n1", "b": "n2"}


def build(policy: dict) -> NetworkPolicy:
    return msgspec.convert(policy, NetworkPolicy)


def policy(name: str = "p", *, namespace: str = "ns1", **spec: object) -> dict:
    return {"metadata": {"name": name, "namespace": namespace}, "spec": {"podSelector": {}, **spec}}


def pod(name: str, *, namespace: str = "ns1", labels: dict | None = None, http: int = 0) -> dict:
    net = 1 if name[0] == "a" else 2
    ips = [f"10.{net}.0.{int(name[1:]) + 1}", f"fd00:{net}::{int(name[1:]) + 1}"]
    ports = {("TCP", "http"): http} if http else {}
    return {"name": name, "namespace": namespace, "labels": labels or {}, "ips": ips, "ports": ports}


def fact(one: dict) -> PodFact:
    ports = tuple((protocol, name, number) for (protocol, name), number in one["ports"].items())
    return PodFact(
        uid=one["name"],
        namespace=one["namespace"],
        name=one["name"],
        labels=one["labels"],
        ips=tuple(one["ips"]),
        ports=ports,
        local=one["name"][0] == "a",
    )


def picture_of(policies: list[dict], pods: list[dict], namespaces: dict[str, dict[str, str]]) -> Picture:
    picture = Picture()
    for name, labels in namespaces.items():
        picture.put_namespace(name, labels)
    for one in pods:
        picture.put_pod(fact(one))
    for one in policies:
        picture.put_policy(parse(build(one)))
    return picture


def kernel_of(picture: Picture) -> FakeNft:
    kernel = FakeNft()
    kernel.write(picture.table.whole())
    return kernel


def check_all(kernel: FakeNft, policies: list[dict], pods: list[dict], namespaces: dict) -> None:
    """Every pair of addresses on some ports, both directions of the packets."""
    addresses = [ip for one in pods for ip in one["ips"]] + OUTSIDE
    local = {one["name"] for one in pods if one["name"][0] == "a"}
    for client in addresses:
        for server in addresses:
            if (":" in client) != (":" in server):
                continue
            for protocol, port in (("TCP", 80), ("TCP", 81), ("UDP", 80), ("TCP", 8080), ("SCTP", 81)):
                wanted = policy_oracle.allowed(
                    policies,
                    pods,
                    namespaces,
                    client=client,
                    server=server,
                    protocol=protocol,
                    port=port,
                    local=local,
                )
                for reply in (False, True):
                    flow = Flow(client, server, protocol.lower(), port, reply=reply)
                    assert passes(kernel, flow) is wanted, (flow, policies)


# --- anything --------------------------------------------------------------------------------------------

label_values = st.sampled_from(["web", "db", "x"])
expressions = st.builds(
    lambda key, operator, values: {
        "key": key,
        "operator": operator,
        **({"values": values} if operator in ("In", "NotIn") else {}),
    },
    st.sampled_from(["app", "tier"]),
    st.sampled_from(["In", "NotIn", "Exists", "DoesNotExist"]),
    st.lists(label_values, min_size=1, max_size=2, unique=True),
)
selectors = st.one_of(
    st.just({}),
    st.builds(lambda v: {"matchLabels": {"app": v}}, label_values),
    st.builds(lambda e: {"matchExpressions": [e]}, expressions),
)
blocks = st.sampled_from(
    [
        {"cidr": "0.0.0.0/0"},
        {"cidr": "0.0.0.0/0", "except": ["10.1.0.0/16"]},
        {"cidr": "10.0.0.0/8", "except": ["10.1.0.1/32", "10.2.0.0/24"]},
        {"cidr": "10.2.0.1/32"},
        {"cidr": "::/0", "except": ["fd00:2::/32"]},
        {"cidr": "fd00:1::/64"},
    ]
)
peers = st.one_of(
    st.builds(lambda s: {"podSelector": s}, selectors),
    st.builds(lambda s: {"namespaceSelector": s}, selectors),
    st.builds(lambda n, p: {"namespaceSelector": n, "podSelector": p}, selectors, selectors),
    st.builds(lambda b: {"ipBlock": b}, blocks),
)
ports = st.sampled_from(
    [
        {"port": 80},
        {"port": 80, "protocol": "UDP"},
        {"port": 80, "endPort": 81},
        {"protocol": "SCTP"},
        {"port": "http"},
        {"port": 8080, "protocol": "TCP"},
    ]
)
few = {"max_size": 2}


def rules(peer: str) -> st.SearchStrategy:
    return st.builds(
        lambda f, p: {**({peer: f} if f else {}), **({"ports": p} if p else {})},
        st.lists(peers, **few),
        st.lists(ports, **few),
    )


policies = st.builds(
    lambda name, namespace, selector, ingress, egress, types: policy(
        name,
        namespace=namespace,
        podSelector=selector,
        ingress=ingress,
        egress=egress,
        **({"policyTypes": types} if types else {}),
    ),
    st.sampled_from(["p", "q", "r"]),
    st.sampled_from(NAMESPACES),
    selectors,
    st.lists(rules("from"), **few),
    st.lists(rules("to"), **few),
    st.sampled_from([[], ["Ingress"], ["Egress"], ["Ingress", "Egress"]]),
)
pods = st.builds(
    lambda name, namespace, labels, http: pod(name, namespace=namespace, labels=labels, http=http),
    st.sampled_from(["a0", "a1", "b0", "b1"]),
    st.sampled_from(NAMESPACES),
    st.sampled_from(LABELS),
    st.sampled_from([0, 80, 8080]),
)
namespace_labels = st.dictionaries(st.sampled_from(["app", "tier"]), label_values, max_size=2)
changes = st.one_of(
    st.tuples(st.just("policy"), policies),
    st.tuples(st.just("pod"), pods),
    st.tuples(st.just("namespace"), st.tuples(st.sampled_from(NAMESPACES), namespace_labels)),
    st.tuples(st.just("no policy"), policies),
    st.tuples(st.just("no pod"), pods),
    st.tuples(st.just("write"), st.none()),
)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(steps=st.lists(changes, min_size=4, max_size=14))
def test_any_history_gives_what_the_specification_says(steps: list) -> None:
    """Step by step, written now and then as changes only: packets pass as the final objects say, and the
    table is the one that these objects give from scratch."""
    picture, kernel = Picture(), FakeNft()
    kernel.write(picture.table.whole())
    picture.table.mark_written()
    known: dict[str, dict] = {"policy": {}, "pod": {}, "namespace": {}}
    for kind, value in [*steps, ("write", None)]:
        if kind == "policy":
            parsed = parse(build(value))
            known["policy"][parsed.key] = value
            picture.put_policy(parsed)
        elif kind == "no policy":
            key = parse(build(value)).key
            known["policy"].pop(key, None)
            picture.drop_policy(key)
        elif kind == "pod":
            old = known["pod"].get(value["name"], value)
            known["pod"][value["name"]] = value
            if old["namespace"] != value["namespace"]:  # a pod's namespace is for life
                picture.drop_pod(value["name"])
            picture.put_pod(fact(value))
        elif kind == "no pod":
            known["pod"].pop(value["name"], None)
            picture.drop_pod(value["name"])
        elif kind == "namespace":
            known["namespace"][value[0]] = value[1]
            picture.put_namespace(*value)
        else:
            kernel.write(picture.table.changes())
            picture.table.mark_written()
    objects = (list(known["policy"].values()), list(known["pod"].values()), known["namespace"])
    fresh = kernel_of(picture_of(*objects))
    assert kernel.content == fresh.content
    assert {n: sorted(r) for n, r in kernel.table.chains.items()} == {
        n: sorted(r) for n, r in fresh.table.chains.items()
    }
    check_all(kernel, *objects)


# --- single points ---------------------------------------------------------------------------------------

WEB, DB = pod("a0", labels={"app": "web"}), pod("a1", labels={"app": "db"})
FAR = pod("b0", labels={"app": "web"})
TCP80 = {"protocol": "tcp", "port": 80}


def reaches(kernel: FakeNft, client: dict, server: dict, **more: object) -> bool:
    return passes(kernel, Flow(client["ips"][0], server["ips"][0], **{**TCP80, **more}))


def test_what_egress_allows_ingress_still_judges() -> None:
    both = [
        policy("out", podSelector={"matchLabels": {"app": "web"}}, policyTypes=["Egress"], egress=[{}]),
        policy("in", podSelector={"matchLabels": {"app": "db"}}),
    ]
    kernel = kernel_of(picture_of(both, [WEB, DB, FAR], {}))
    assert not reaches(kernel, WEB, DB)
    assert not reaches(kernel, WEB, DB, tracked=False)
    assert reaches(kernel, WEB, FAR)


def test_packets_without_a_connection_do_not_get_around_a_policy() -> None:
    some = policy("some", podSelector={"matchLabels": {"app": "db"}}, ingress=[{"ports": [{"port": 80}]}])
    kernel = kernel_of(picture_of([some], [WEB, DB], {}))
    assert reaches(kernel, WEB, DB)
    assert not reaches(kernel, WEB, DB, tracked=False)
    assert reaches(kernel, DB, WEB, tracked=False)


def test_link_local_addresses_do_not_get_around_a_policy() -> None:
    kernel = kernel_of(picture_of([policy()], [WEB, DB], {}))
    assert not passes(kernel, Flow("fe80::1", WEB["ips"][1]))
    assert not passes(kernel, Flow(WEB["ips"][1], "fe80::1"))


def test_a_changed_label_takes_a_peer_out() -> None:
    allow_web = policy(
        podSelector={"matchLabels": {"app": "db"}},
        ingress=[{"from": [{"podSelector": {"matchLabels": {"app": "web"}}}]}],
    )
    picture = picture_of([allow_web], [WEB, DB], {})
    kernel = kernel_of(picture)
    picture.table.mark_written()
    assert reaches(kernel, WEB, DB)
    picture.put_pod(fact({**WEB, "labels": {"app": "other"}}))
    kernel.write(picture.table.changes())
    assert not reaches(kernel, WEB, DB)


def test_one_pod_more_is_a_few_elements_more() -> None:
    many = [
        policy(f"p{n}", ingress=[{"from": [{"podSelector": {"matchLabels": {"app": f"x{n}"}}}]}])
        for n in range(200)
    ]
    picture = picture_of(many, [WEB, DB], {})
    kernel = kernel_of(picture)
    picture.table.mark_written()
    picture.put_pod(fact(pod("a7", labels={"app": "x3"})))
    text = picture.table.changes()
    assert len(text.splitlines()) == 6, text  # peers, chains and self, for two families
    kernel.write(text)


def test_an_address_two_pods_claim_is_the_newer_ones() -> None:
    closed = policy(podSelector={"matchLabels": {"app": "web"}})
    other = policy("other", podSelector={"matchLabels": {"app": "db"}}, ingress=[{}])
    ended = pod("a0", labels={"app": "web"})
    newer = {**pod("a5", labels={"app": "db"}), "ips": ended["ips"]}
    picture = picture_of([closed, other], [ended, newer, FAR], {})
    kernel = kernel_of(picture)
    picture.table.mark_written()
    assert reaches(kernel, FAR, newer)
    picture.drop_pod("a5")
    kernel.write(picture.table.changes())
    assert not reaches(kernel, FAR, ended)


def test_a_part_without_sense_allows_nothing_and_is_told() -> None:
    strange = policy(
        ingress=[
            {"from": [{"ipBlock": {"cidr": "10.2.0.0/99"}}, {}]},
            {"ports": [{"port": 80, "protocol": "DCCP"}, {"port": 90, "endPort": 80}]},
            {"from": [{"podSelector": {"matchExpressions": [{"key": "app", "operator": "Like"}]}}]},
        ]
    )
    parsed = parse(build(strange))
    assert [text.partition(":")[0] for text in parsed.problems] == [
        "ingress[0].peers",
        "ingress[0].peers",
        "ingress[1].ports",
        "ingress[1].ports",
    ]
    kernel = kernel_of(picture_of([strange], [WEB, FAR], {}))
    assert not reaches(kernel, FAR, WEB)
