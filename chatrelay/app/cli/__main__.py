"""``python -m chatrelay.app.cli``: the `chatrelay` command without its script."""

import sys

from chatrelay.app.cli.main import main

sys.exit(main())
