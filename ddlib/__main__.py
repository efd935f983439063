"""`python -m ddlib`: the launcher."""

import sys

from .store import ROOT
from .study.launcher import main

if not (ROOT / "notebooks").is_dir() and not {"work", "status", "-h", "--help"} & {*sys.argv}:
    print(f"error: no notebooks in {ROOT}; this command needs a checkout of ddlib", file=sys.stderr)
    sys.exit(2)
sys.exit(main())
