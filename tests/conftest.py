"""Shared by all tests."""

from __future__ import annotations

import os
import signal

# A shell that starts the tests in the background has them ignore Ctrl-C, which their children would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

# As the command line does: threads that spin while they wait slow everything on a busy machine. The networks
# of the tests are small, and several processes run them at once.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Each of those processes is given the width of a terminal that it does not have.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.pop("COLUMNS", None)
    os.environ.pop("LINES", None)
