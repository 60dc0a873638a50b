"""One thread per process: the networks of the tests are too small to share, and idle threads would wait busily."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported
