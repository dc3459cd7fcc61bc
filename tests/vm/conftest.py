"""The second kernel's programs and base disk are made before the first test asks for them."""

import os

import pytest

from tests.vm import vmkit


@pytest.fixture(scope="session", autouse=True)
def prepared() -> None:
    """Minutes at the first run on a machine, nothing afterwards."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    vmkit.prepare()
    vmkit.base_disk()
