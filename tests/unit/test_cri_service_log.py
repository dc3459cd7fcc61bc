"""What gRPC logs of callers that hang up is kept out of the log, and nothing else of it."""

import logging

from cri.server.service import HungUp


def test_a_caller_that_hangs_up_is_no_error(caplog):
    """The words are those of grpcio's aio server (server.pyx.pxi, _handle_exceptions)."""
    logger, quiet = logging.getLogger(HungUp.LOGGER), HungUp()
    logger.addFilter(quiet)
    try:
        logger.error(
            "%s raised in core by servicer method [%s]",
            "ExecuteBatchError",
            "/runtime.v1.RuntimeService/StopContainer",
        )
        logger.error("Unexpected [%s] raised by servicer method [%s]", "KeyError", "/x")
    finally:
        logger.removeFilter(quiet)
    assert [record.getMessage() for record in caplog.records] == [
        "Unexpected [KeyError] raised by servicer method [/x]"
    ]
