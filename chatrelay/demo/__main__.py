"""``python -m chatrelay.demo``."""

import sys

from chatrelay.app import output

if __name__ == "__main__":
    # Loading takes long enough for a Ctrl-C to fall into it: that too is a wish to stop, not an error.
    try:
        from chatrelay.demo.run import main

        status: int | str | None
        with output.checked():
            try:
                status = main(sys.argv[1:])
            except SystemExit as end:  # it was asked for its help, or was called wrongly
                status = end.code
        sys.exit(status)
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:  # whoever read what it prints has gone
        output.discard()
