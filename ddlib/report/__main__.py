"""`python -m ddlib.report`: the PDF."""

import sys

from .pdf import main

sys.exit(main())
