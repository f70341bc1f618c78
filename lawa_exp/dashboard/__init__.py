"""`python -m lawa_exp.dashboard SWEEP`: one HTML page of a sweep that needs no server and no other file."""
