"""A few lives of a node against the model; `tests/run soak_cri` lives many more."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from cri_model import CriMachine
from crinode import CriNode
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

SETTINGS = settings(
    max_examples=6,
    stateful_step_count=30,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture
async def machine(node: CriNode) -> AsyncIterator[type[CriMachine]]:
    """For the daemon of these tests. A connection belongs to one event loop: the machine makes its own."""
    await node.disconnect()
    yield type("Machine", (CriMachine,), {"node": node})
    await node.connect()


def test_any_order_of_calls_and_crashes(machine: type[CriMachine]) -> None:
    run_state_machine_as_test(machine, settings=SETTINGS)
