"""A hundred kills of the agent under churn: no container restarted, no Ready flip, no pod lost or doubled."""

import time

import pytest
from churn import kill_agent_under_churn

CYCLES = 100


@pytest.mark.timeout(3600)
def test_a_hundred_kills_of_the_agent(ns):
    seed = int(time.time())
    print(f"seed {seed}")
    kill_agent_under_churn(ns, cycles=CYCLES, seed=seed)
