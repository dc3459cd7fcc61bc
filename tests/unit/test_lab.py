"""The lab's pure parts: names, places, go.mod texts, argument errors, what its runners say."""

from pathlib import Path

import pytest

from deploy.labkit import cli, gobuild, leaks, nodes, stocknode, versions
from deploy.labkit.layout import Layout, Node
from tests import rings
from tests.bench import report

UPSTREAM = """\
module k8s.io/kubernetes

go 1.26.0

require (
\tk8s.io/api v0.0.0
\tgolang.org/x/net v0.50.0
)

replace (
\tk8s.io/api => ./staging/src/k8s.io/api
\tk8s.io/apimachinery => ./staging/src/k8s.io/apimachinery
)
replace k8s.io/kubelet => ./staging/src/k8s.io/kubelet
"""


def test_go_mod_replaces_each_staging_module_by_its_published_version():
    text = gobuild.render_module("k8s.io/kubernetes", "v1.37.1", UPSTREAM)
    assert text == (
        "module lab\n"
        "go 1.26.0\n"
        "require k8s.io/kubernetes v1.37.1\n"
        "replace (\n"
        "\tk8s.io/api => k8s.io/api v0.37.1\n"
        "\tk8s.io/apimachinery => k8s.io/apimachinery v0.37.1\n"
        "\tk8s.io/kubelet => k8s.io/kubelet v0.37.1\n"
        ")\n"
    )


def test_go_mod_without_replacements():
    assert gobuild.render_module("example.com/x", "v1.0.0", None) == (
        "module lab\ngo 1.26\nrequire example.com/x v1.0.0\n"
    )


@pytest.mark.parametrize(
    "project", [versions.CONTROL_PLANE, versions.ETCD_SERVER, versions.COREDNS_SERVER, *versions.STOCK_NODE]
)
def test_every_project_has_a_recipe_for_each_of_its_programs(project):
    recipe = gobuild.recipe(project)
    assert len(recipe.packages) == len(project.programs)
    assert recipe.version == f"v{project.version}"


def test_two_labs_share_no_place_but_the_cache():
    one, two = Layout(name="one"), Layout(name="two")
    assert one.cache == two.cache
    for place in ("state", "run", "logs", "pki", "registry", "cgroup"):
        assert getattr(one, place) != getattr(two, place)
    assert one.node_cgroup("n1") == "/nodelet-lab-one/n1"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "VERB"),
        (["fly"], "fly"),
        (["up", "--fast"], "--fast"),
        (["up", "--nodes", "-1"], "--nodes"),
        (["--name", "a/b", "up"], "a/b"),
        (["--name", "thirteen-chars", "up"], "thirteen-chars"),
        (["node", "add", "control"], "control"),
        (["node", "paint", "n3"], "paint"),
    ],
)
def test_a_wrong_argument_is_one_line_that_names_it(words, named, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.parse(words)
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert named in lines[0]


def test_what_follows_kubectl_and_shell_is_left_as_it_is():
    for words in (["get", "pods", "-A", "--name", "x"], ["-n", "x", "get"], ["--help"], []):
        assert cli.parse(["--name", "kubectl", "kubectl", *words]).arguments == words
    assert cli.parse(["shell", "n1", "--", "ls", "-l"]).command[-2:] == ["ls", "-l"]


def test_a_node_is_of_one_kind():
    kinds = [cli.parse(["node", "add", "x", *words]).kind for words in ([], ["--stock"], ["--kubelet"])]
    assert kinds == ["nodelet", "stock", "kubelet"]
    with pytest.raises(SystemExit):
        cli.parse(["node", "add", "x", "--stock", "--kubelet"])


def test_a_kubelet_on_nodelet_cri_uses_its_socket_and_waits_for_it():
    lab, node = Layout(name="x"), Node(name="k", index=0, kind="kubelet")
    runtime, kubelet, proxy = nodes.services(lab, node)
    assert [runtime.name, kubelet.name, proxy.name] == ["nodelet-cri", "kubelet", "kube-proxy"]
    endpoint = nodes.kubelet_configuration(lab, node)["containerRuntimeEndpoint"]
    assert endpoint == f"unix://{runtime.socket}"


def test_flannel_waits_for_the_pod_range():
    lab, node = Layout(name="x"), Node(name="s", index=0, kind="stock")
    assert [each.name for each in nodes.services(lab, node) if each.needs_pod_range] == ["flannel"]


def test_nodes_are_remembered_and_addresses_reused(tmp_path):
    lab = Layout(name="x", state_root=tmp_path)
    assert nodes.known(lab) == []
    first, second = nodes.add(lab, "n1"), nodes.add(lab, "n2", kind="stock")
    assert (first.address, second.address) == ("10.199.0.11", "10.199.0.12")
    assert nodes.add(lab, "n1") == first
    nodes.forget(lab, "n1")
    assert nodes.known(lab) == [second]
    assert nodes.add(lab, "n3") == Node(name="n3", index=0)
    with pytest.raises(Exception, match="n2 is there already, as a stock node"):
        nodes.add(lab, "n2")


def test_each_node_has_a_cgroup_root_of_its_own():
    lab = Layout(name="x")
    configurations = [nodes.kubelet_configuration(lab, Node(name=name, index=0)) for name in ("a", "b")]
    assert [found["cgroupRoot"] for found in configurations] == ["/nodelet-lab-x/a", "/nodelet-lab-x/b"]


def test_the_stock_network_uses_the_nodes_pod_range():
    bridge = stocknode.network("10.244.7.0/24", flannel=True)["plugins"][0]
    assert bridge["ipam"]["ranges"] == [[{"subnet": "10.244.7.0/24"}]]


def test_a_difference_names_what_came_and_what_went():
    nothing = {name: frozenset() for name in leaks.Picture.__dataclass_fields__}
    before = leaks.Picture(**{**nothing, "links": frozenset({"eth0"})})
    after = leaks.Picture(**{**nothing, "processes": frozenset({"7 sleep"})})
    assert leaks.difference(before, before) == []
    assert leaks.difference(before, after) == [
        "processes: left behind: 7 sleep",
        "links: taken away: eth0",
    ]


def test_the_conformance_ring_has_a_process_of_its_own(tmp_path):
    paths = [str(tmp_path / "tests" / name) for name in ("unit", "conformance", "lab")]
    assert rings.apart(paths, tmp_path) == (paths[1:2], [paths[0], paths[2]])


def test_rings_become_paths(tmp_path):
    for ring in ("unit", "lab"):
        (tmp_path / "tests" / ring).mkdir(parents=True)
        (tmp_path / "tests" / ring / "test_a.py").touch()
    everything, extra = rings.plan([], tmp_path)
    assert [Path(path).name for path in everything] == ["unit", "lab"]
    assert extra == []
    paths, extra = rings.plan(["unit", "--", "-k", "x"], tmp_path)
    assert ([Path(path).name for path in paths], extra) == (["unit"], ["-k", "x"])
    assert rings.needs_lab(everything, tmp_path)
    assert not rings.needs_lab(paths, tmp_path)
    for wrong in ("nothing", "--fast"):
        with pytest.raises(rings.UsageError, match=wrong):
            rings.plan([wrong], tmp_path)


def test_a_figure_shows_how_many_times_better_ours_is():
    time = report.Figure(what="start", ours=100.0, stock=484.0, unit="ms")
    rate = report.Figure(what="pods", ours=20.0, stock=8.0, unit="/s", more_is_better=True)
    alone = report.Figure(what="memory", ours=50.0, stock=None, unit="MB")
    assert report.line(time).split()[-4:] == ["484", "ms", "ratio", "4.8x"]
    assert report.line(rate).endswith("ratio 2.5x")
    assert report.line(alone).endswith("ratio -")


@pytest.mark.parametrize(("share", "value"), [(0.5, 2), (0.95, 4), (0.0, 1), (1.0, 4)])
def test_percentile(share, value):
    assert report.percentile([4, 1, 3, 2], share) == value
