"""A thousand starts of pods that may not send: not one packet of theirs arrives (P20)."""

import pytest
from first_packet import denied_pods_send_nothing

STARTS = 1000


@pytest.mark.timeout(3600)
def test_a_thousand_starts_and_not_one_packet(ns):
    denied_pods_send_nothing(ns, starts=STARTS, at_once=40)
