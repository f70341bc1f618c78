"""Which model the checkpoints of other people's training are of: one file for each family, `families.py` the table."""
