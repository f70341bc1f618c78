"""`python -m lawa_exp`: train, continue or plan; the arguments are Hydra overrides."""

import sys

from lawa_exp.launch.compose import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
