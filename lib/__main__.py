"""``python -m lib``: the commands of lib.pipeline.cli."""

import sys

from lib.pipeline.cli import main

sys.exit(main())
