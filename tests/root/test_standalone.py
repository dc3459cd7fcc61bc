"""`nodelet run --standalone --manifests DIR` beside `nodelet-cri`, as a user starts them.

No cluster, every path at its default.

The machine is a holder process in namespaces of its own whose /etc, /opt, /var and /run are covered, so the
defaults are tried out and nothing is left of them.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from crinode import BUSYBOX, build_images

from host.cgroups import Cgroups

BIN = Path(sys.executable).parent
CHECKOUT = Path(__file__).parents[2]
CGROUP = f"/nodelet-test-{os.getpid()}-alone"
PREPARE = """
set -e
mount --make-rprivate /
hostname alone
ip link set lo up
mount -t tmpfs tmpfs /run
for place in /etc /opt /var/lib /var/log; do
    cover=/run/cover$place
    mkdir -p $cover/upper $cover/work
    mount -t overlay -o lowerdir=$place,upperdir=$cover/upper,workdir=$cover/work none $place
done
mkdir -p /var/lib/nodelet /etc/nodelet/registries.d/_default
mount -t tmpfs tmpfs /var/lib/nodelet
printf 'server = "http://127.0.0.1:5000"\n' > /etc/nodelet/registries.d/_default/hosts.toml
echo ready
exec sleep 600
"""
POD = """
apiVersion: v1
kind: Pod
metadata:
  name: {name}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - name: web
      image: {image}
      command: [sh, -c, "mkdir /www; echo {text} > /www/index.html; exec busybox httpd -f -p 80 -h /www"]
"""


class Alone:
    """One machine with both programs and a registry."""

    def __init__(self, folder: Path) -> None:
        self.manifests = folder / "manifests"
        self._logs = folder
        self._programs: dict[str, subprocess.Popen[bytes]] = {}
        argv = ["unshare", "-n", "-m", "-u", "sh", "-c", PREPARE]
        self._holder = subprocess.Popen(argv, stdout=subprocess.PIPE)
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"ready\n"
        self._inside = ["nsenter", f"--target={self._holder.pid}", "--net", "--mount", "--uts", "--"]
        build_images(folder / "store")
        registry = [
            "env",
            f"PYTHONPATH={CHECKOUT}",
            sys.executable,
            "-m",
            "deploy.labkit.registry",
            f"--root={folder / 'store'}",
        ]
        self.start("registry", *registry, "--listen=127.0.0.1:5000")
        self.start("nodelet-cri", str(BIN / "nodelet-cri"))
        self.start_nodelet()

    def start_nodelet(self) -> None:
        flags = ["--standalone", f"--manifests={self.manifests}", f"--cgroup-root={CGROUP}"]
        self.start("nodelet", str(BIN / "nodelet"), "run", *flags)

    def start(self, name: str, *argv: str) -> None:
        with (self._logs / f"{name}.log").open("ab") as log:
            self._programs[name] = subprocess.Popen(
                [*self._inside, *argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def stop(self, name: str, number: int = signal.SIGTERM) -> int:
        program = self._programs.pop(name)
        program.send_signal(number)
        return program.wait(20)

    def close(self) -> None:
        """End everything; pods that a failed test left outlive the programs, so these remove them first."""
        if self.run("ls", "/run/netns"):
            for manifest in self.manifests.iterdir():
                manifest.unlink()
            if "nodelet" not in self._programs:
                self.start_nodelet()
            until(lambda: not self.run("ls", "/run/netns"), self)
        for name in reversed(list(self._programs)):
            self.stop(name)
        cgroups = Cgroups()
        cgroups.kill(CGROUP)
        self._holder.kill()
        self._holder.wait(60)
        if self._holder.stdout is not None:
            self._holder.stdout.close()
        cgroups.remove(CGROUP)

    def log(self, name: str = "nodelet") -> str:
        return (self._logs / f"{name}.log").read_text(errors="replace")

    def write(self, file: str, text: str) -> None:
        """Put a manifest there in one step, as a careful user or tool does."""
        temporary = self.manifests / f".{file}"
        temporary.write_text(text)
        temporary.rename(self.manifests / file)

    def run(self, *argv: str) -> str:
        """What a command inside says; "" when it fails."""
        return subprocess.run([*self._inside, *argv], capture_output=True, text=True, check=False).stdout

    def get(self, address: str) -> str:
        return self.run("busybox", "wget", "-Y", "off", "-q", "-O-", f"http://{address}").strip()

    def address(self, name: str) -> str:
        """The pod's address, as the last line about it that is in the log says."""
        found = re.findall(rf"pod={name}-alone_default\(\w+\) phase=Running ready=1/1 ip=(\S+)", self.log())
        return found[-1] if found else ""

    def servers(self) -> set[int]:
        """Process ids of the pods' web servers, without the children they fork for each request."""
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            try:
                ours = f"{CGROUP}/kubepods" in (path / "cgroup").read_text()
                if ours and b"httpd\0-f" in (path / "cmdline").read_bytes():
                    # After the program's name, which may hold anything: state, parent, …
                    found[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
        return {pid for pid, parent in found.items() if parent not in found}


def until(fact: Callable[[], object], alone: Alone, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not fact():
        if time.monotonic() > deadline:
            raise AssertionError(f"did not happen\n{alone.log()}\n{alone.log('nodelet-cri')}")
        time.sleep(0.05)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, throw_away_namespaces: None) -> Iterator[Alone]:
    folder = tmp_path_factory.mktemp("alone")
    manifests = folder / "manifests"
    manifests.mkdir()
    (manifests / "web.yaml").write_text(POD.format(name="web", image=BUSYBOX, text="one"))
    (manifests / "broken.yaml").write_text("apiVersion: v1\nkind: Pod\nmetadata: {name: broken\nspec: 1\n")
    (manifests / "odd.json").write_text(json.dumps({"apiVersion": "v1", "kind": "Service"}))
    machine = Alone(folder)
    yield machine
    machine.close()


def test_pods_run_and_answer(alone: Alone) -> None:
    until(lambda: alone.address("web"), alone)
    until(lambda: alone.get(alone.address("web")) == "one", alone)
    assert alone.get("127.0.0.1:10248/healthz") == "ok"


def test_a_broken_manifest_is_named_with_its_line(alone: Alone) -> None:
    lines = [line for line in alone.log().splitlines() if "manifest ignored" in line]
    assert [("broken.yaml" in line, "odd.json" in line) for line in lines] == [(True, False), (False, True)]
    assert "line 4" in lines[0]
    assert "kind must be Pod" in lines[1]


def test_pods_outlive_a_killed_agent(alone: Alone) -> None:
    until(lambda: alone.address("web"), alone)
    before = alone.servers()
    seen = alone.log().count("agent is up")
    assert alone.stop("nodelet", signal.SIGKILL) == -signal.SIGKILL
    assert alone.get(alone.address("web")) == "one"
    alone.start_nodelet()
    until(lambda: alone.log().count("agent is up") > seen and "phase=Running" in alone.log(), alone)
    until(lambda: alone.log().rindex("phase=Running") > alone.log().rindex("agent starts"), alone)
    assert alone.servers() == before
    assert alone.get(alone.address("web")) == "one"


def test_an_edited_manifest_replaces_its_pod(alone: Alone) -> None:
    before = alone.servers()
    alone.write("web.yaml", POD.format(name="web", image=BUSYBOX, text="two"))
    until(lambda: alone.servers() and not alone.servers() & before, alone)
    until(lambda: alone.get(alone.address("web")) == "two", alone)


def test_a_removed_manifest_removes_its_pod(alone: Alone) -> None:
    (alone.manifests / "web.yaml").unlink()
    until(lambda: not alone.servers(), alone)
    until(lambda: not alone.run("ls", "/run/netns"), alone)
    assert "veth" not in alone.run("ip", "-brief", "link")
    assert not alone.run("ls", "/var/lib/kubelet/pods")


def test_both_programs_end_with_status_0(alone: Alone) -> None:
    assert alone.stop("nodelet") == 0
    assert alone.stop("nodelet-cri") == 0
    assert "Traceback" not in alone.log() + alone.log("nodelet-cri")
