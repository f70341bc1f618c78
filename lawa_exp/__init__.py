"""Weight averaging along a training run: one trajectory, many averages."""

__version__ = "0.1.0"
