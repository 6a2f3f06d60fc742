"""`python -m vsr` is the same as `vsr`."""

import sys

from vsr.cli import main

sys.exit(main())
