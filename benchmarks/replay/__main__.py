"""`python -m benchmarks.replay`. Nothing else is here: a worker process can't import this module."""

import sys

from benchmarks.replay.command import main

sys.exit(main())
