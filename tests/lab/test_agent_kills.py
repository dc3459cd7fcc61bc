"""A few kills of the agent under churn; tests/soak has a hundred."""

from churn import kill_agent_under_churn

CYCLES = 5


def test_pods_do_not_notice_kills_of_the_agent(ns):
    kill_agent_under_churn(ns, cycles=CYCLES, seed=1)
