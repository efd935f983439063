"""`python -m ddlib`: the launcher."""

import sys

from .study.launcher import main

sys.exit(main())
