"""What holds for every process of the tests, and for what they start."""

import logging
import os
import signal
import tempfile

import pytest

# One thread unless a test says otherwise: as many tests run at once as there are cores, and several ranks with all
# threads each take many times as long. Before anything imports torch or numpy.
os.environ.setdefault("OMP_NUM_THREADS", "1")
STATE = tempfile.TemporaryDirectory(prefix="lawa_exp-state-")  # what the user trained with is on record there
os.environ["XDG_STATE_HOME"] = STATE.name
CACHE = tempfile.TemporaryDirectory(prefix="lawa_exp-cache-")  # not the user's own
os.environ["LAWA_CACHE"] = CACHE.name
logging.raiseExceptions = False  # a package may have set up its log on a stream that a test has closed since
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, and would be in what the tests start


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--harness-out", default=None, help="append the harness's counts to this file, as JSON lines")
    parser.addoption("--harness-whole", action="store_true", help="the whole harness instead of a seeded tenth")
