"""`python -m seams.command` is `python -m lawa_exp`, with the probes as further choices."""

import sys

from lawa_exp.launch.compose import main
from seams.probes import register

register()
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
