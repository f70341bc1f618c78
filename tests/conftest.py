"""Every process of the tests computes with one thread unless a test says otherwise: as many run at once as there are
cores, and several ranks with all threads each take many times as long."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything imports torch or numpy; inherited by what tests start
