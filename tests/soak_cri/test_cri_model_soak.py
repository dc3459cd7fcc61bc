"""Many lives of a node against the model of tests/root/cri_model.py, other ones each time."""

from __future__ import annotations

import pytest
from cri_model import CriMachine
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test
from test_cri_model import SETTINGS, machine  # noqa: F401 - a fixture


@pytest.mark.timeout(3600)
def test_many_orders_of_calls_and_crashes(machine: type[CriMachine]) -> None:  # noqa: F811
    run_state_machine_as_test(
        machine, settings=settings(SETTINGS, max_examples=60, stateful_step_count=60, derandomize=False)
    )
