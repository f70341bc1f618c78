"""`python -m seams.command` is `python -m lawa_exp`, with the probes as further choices."""

import sys

from seams.probes import register

from lawa_exp.launch.compose import main

register()
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
