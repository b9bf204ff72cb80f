"""``python -m chatrelay.app.cli``: the `chatrelay` command without its script.

This module only calls `chatrelay.app.cli.main`.
"""

import sys

from chatrelay.app.cli.main import main

sys.exit(main())
