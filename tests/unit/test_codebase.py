"""The rules of this codebase that a machine can check: style, types, layers, sizes, dangerous calls."""

import ast
import functools
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("agent", "cni", "cri", "host")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
RUNTIME = "cri/runtime"
PROCESSES = {"host/processes.py", f"{RUNTIME}/launch.py"}
DISTRIBUTIONS = {"google": "protobuf", "grpc": "grpcio", "yaml": "pyyaml"}
"""Where a package on the index has another name than the module."""


def sources(*folders: str) -> list[Path]:
    found = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert found
    return [path for path in found if "_pb2" not in path.name]


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def tool(*argv: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *argv], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff_check():
    tool("ruff", "check", ".")


def test_ruff_format():
    tool("ruff", "format", "--check", ".")


def test_types():
    tool("mypy")


def test_layers():
    command = "from importlinter.cli import lint_imports_command as c; c()"
    done = subprocess.run(
        [sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_file_sizes():
    long = {
        str(path.relative_to(ROOT)): lines
        for path in sources(*PACKAGES, "deploy", "tests")
        if (lines := len(path.read_text().splitlines())) > MAX_FILE_LINES * 1.1
    }
    assert long == {}


def test_function_sizes():
    long = {}
    for path in sources(*PACKAGES, "deploy"):
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES * 1.1:
                    long[f"{path.relative_to(ROOT)}:{node.name}"] = lines
    assert long == {}


def test_every_module_says_what_it_is_for():
    silent = [
        str(path.relative_to(ROOT))
        for path in sources(*PACKAGES, "deploy", "tests")
        if not ast.get_docstring(parsed(path))
    ]
    assert silent == []


@functools.cache
def imported(path: Path) -> frozenset[str]:
    """Names of the modules a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


@functools.cache
def touched(path: Path) -> frozenset[str]:
    """What a file imports, `module.name` of what it takes out of a module, and `.name` of every attribute."""
    attributes = [node for node in ast.walk(parsed(path)) if isinstance(node, ast.Attribute)]
    of_names = {f"{node.value.id}.{node.attr}" for node in attributes if isinstance(node.value, ast.Name)}
    return imported(path) | of_names | {f".{node.attr}" for node in attributes}


@pytest.mark.parametrize(
    ("names", "allowed"),
    [
        ({"subprocess", "multiprocessing", "concurrent.futures.ProcessPoolExecutor"}, PROCESSES),
        ({".subprocess_exec", ".subprocess_shell"}, {"host/helpers.py"}),
        ({"asyncio.create_subprocess_exec", "asyncio.create_subprocess_shell"}, set()),
        ({"os.fork"}, {f"{RUNTIME}/spawner.py"}),
        (
            {"os.execve", "os.execv", "os.execvp", "os.execvpe"},
            {f"{RUNTIME}/init.py", f"{RUNTIME}/oci/bundle.py", "agent/main.py"},
        ),
        ({"os.system", "os.popen", "os.forkpty", "os.posix_spawn", "os.spawnv", "pty.fork"}, set()),
        ({"ctypes"}, {"host/syscalls.py"}),
        ({"socket.AF_NETLINK"}, {"host/netlink.py", "host/linkremoval.py", "host/wireguard.py"}),
        (
            {"socket.SOCK_RAW"},
            {"host/netlink.py", "host/linkremoval.py", "host/wireguard.py", "agent/overlay/mtu.py"},
        ),
        ({"socket.AF_PACKET"}, set()),
        ({"jeepney", "jeepney.io.threading"}, {"host/dbus.py", "host/systemd.py", "host/logind.py"}),
        ({"host.systemd", "host.cgroups.systemd"}, {"host/cgroups/driver.py"}),  # supervisors load neither
        ({"pickle", "marshal", "shelve"}, set()),
        ({"tarfile"}, {"cri/images/archive.py"}),
        ({".extract", ".extractall", "zipfile", "shutil.unpack_archive"}, set()),
        ({"yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.Loader", "yaml.UnsafeLoader"}, set()),
    ],
    ids=lambda value: "" if not value else min(value),
)
def test_one_door_for_each_dangerous_thing(names, allowed):
    """Processes, system calls and netlink each have one module; some calls have none."""
    users = {str(path.relative_to(ROOT)) for path in sources(*PACKAGES) if touched(path) & names}
    assert users - allowed == set()
    assert allowed - users == set(), "no longer needs the permission"


def test_dependencies_are_what_is_imported():
    """In both directions; what only tests or the lab import is in an extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[<>=~! ;]", line)[0].lower() for line in project["dependencies"]}
    ours = {*PACKAGES, "proto"}
    modules = {name.split(".")[0] for path in sources(*ours) for name in imported(path)}
    modules |= {name.split(".")[0] for path in (ROOT / "proto").rglob("*_pb2*.py") for name in imported(path)}
    foreign = modules - set(sys.stdlib_module_names) - ours - {"_typeshed"}
    assert {DISTRIBUTIONS.get(name, name) for name in foreign} == declared
