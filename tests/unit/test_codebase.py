"""The rules of this codebase that a machine can check: style, types, layers, sizes, dangerous calls."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("agent", "cni", "cri", "host")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60


def sources(*folders: str) -> list[Path]:
    found = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert found
    return [path for path in found if "_pb2" not in path.name]


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
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES * 1.1:
                    long[f"{path.relative_to(ROOT)}:{node.name}"] = lines
    assert long == {}


def test_every_module_says_what_it_is_for():
    silent = [
        str(path.relative_to(ROOT))
        for path in sources(*PACKAGES)
        if not ast.get_docstring(ast.parse(text := path.read_text())) and text.strip()
    ]
    assert silent == []


@pytest.mark.parametrize(
    ("module", "names", "allowed"),
    [
        ("subprocess", None, {"host/processes.py", "cri/runtime/launch.py"}),
        ("ctypes", None, {"host/syscalls.py"}),
        ("pyroute2", None, {"host/netlink.py"}),
        ("pickle", None, set()),
        ("marshal", None, set()),
        ("os", {"fork", "system", "popen"}, {"cri/runtime"}),
        ("tarfile", {"extract", "extractall"}, set()),
        ("yaml", {"load", "unsafe_load", "full_load"}, set()),
    ],
)
def test_one_door_for_each_dangerous_thing(module, names, allowed):
    """Processes, system calls and netlink each have one module; some calls have none."""
    found = set()
    for path in sources(*PACKAGES):
        relative = str(path.relative_to(ROOT))
        if any(relative.startswith(prefix) for prefix in allowed):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if names is None:
                imported = (
                    [alias.name for alias in node.names]
                    if isinstance(node, ast.Import)
                    else [node.module or ""]
                    if isinstance(node, ast.ImportFrom)
                    else []
                )
                if any(name.split(".")[0] == module for name in imported):
                    found.add(relative)
            elif (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == module
                and node.attr in names
            ):
                found.add(f"{relative}:{node.lineno} {module}.{node.attr}")
    assert found == set()
