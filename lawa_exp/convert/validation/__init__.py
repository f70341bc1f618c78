"""What `--data DATA` is, one file for each kind (`kinds.py` is the table), and samples of it for a model."""
