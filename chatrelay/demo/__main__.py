"""``python -m chatrelay.demo``."""

import sys

if __name__ == "__main__":
    # Loading takes long enough for a Ctrl-C to fall into it: that too is a wish to stop, not an error.
    try:
        from chatrelay.demo.run import main

        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        pass
