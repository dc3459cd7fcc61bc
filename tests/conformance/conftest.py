"""What a CRI runtime promises: the same cases against nodelet-cri and against its stock counterpart.

Nothing here knows more of a runtime than its socket; what is promised beyond CRI says so with `beyond_cri`.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import counterparts
import crinode
import isolation
import pytest
from criclient import CriClient

throw_away_namespaces = isolation.throw_away_namespaces
_ENDPOINT = os.environ.get(counterparts.ENDPOINT, "")
_MISSING = counterparts.missing_for_containerd()
_LEGS = ["external"] if _ENDPOINT else ["nodelet-cri"] if _MISSING else ["nodelet-cri", "containerd"]


def pytest_report_header() -> str:
    """Which runtimes are asked, and why not the other one."""
    why = (
        f"; not containerd: the lab's cache lacks {', '.join(_MISSING)}" if _MISSING and not _ENDPOINT else ""
    )
    return f"conformance of {', '.join(_LEGS)}{why}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What nodelet-cri promises beyond CRI is asked of nodelet-cri alone."""
    ours = [item for item in items if _is_asked(item)]
    config.hook.pytest_deselected(items=[item for item in items if not _is_asked(item)])
    items[:] = ours


def _is_asked(item: pytest.Item) -> bool:
    if "beyond_cri" not in getattr(item, "fixturenames", ()):
        return True
    return item.callspec.params["runtime"] == "nodelet-cri"  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory, throw_away_namespaces: None) -> Iterator[int]:
    """The port of a registry with the images of these cases."""
    store = tmp_path_factory.mktemp("registry")
    counterparts.build_images(store)
    with crinode.serving(store) as port:
        yield port


@pytest.fixture(scope="session", params=_LEGS)
def runtime(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CriClient]:
    """One runtime after the other, each started once."""
    folder: Path = tmp_path_factory.mktemp("conformance")
    if request.param == "external":
        yield counterparts.external(_ENDPOINT, folder)
        return
    port: int = request.getfixturevalue("registry")
    start = counterparts.ours if request.param == "nodelet-cri" else counterparts.containerd
    with start(folder / "runtime", registry=port) as client:
        yield client


@pytest.fixture
async def node(runtime: CriClient) -> AsyncIterator[CriClient]:
    """A connection to the runtime with its images pulled; the pods of a test are removed after it."""
    await runtime.connect()
    await runtime.pull(*counterparts.IMAGES)
    yield runtime
    await runtime.clean(of="nodelet-tests")
    await runtime.disconnect()


@pytest.fixture
def beyond_cri() -> None:
    """For what nodelet-cri promises and the specification leaves open."""
