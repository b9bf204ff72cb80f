"""``python -m chatrelay.demo``: start the demo, and end without a traceback.

`chatrelay.demo.run` runs the demo. This module must not do anything else.
"""

import sys

from chatrelay.app import output

if __name__ == "__main__":
    # Importing takes long enough for a Ctrl-C to arrive during it. Then stop without an error, too.
    try:
        from chatrelay.demo.run import main

        status: int | str | None
        with output.checked():
            try:
                status = main(sys.argv[1:])
            except SystemExit as end:  # for --help, or a wrong command line
                status = end.code
        sys.exit(status)
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:  # the reader of standard output has gone
        output.discard()
