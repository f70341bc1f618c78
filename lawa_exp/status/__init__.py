"""`python -m lawa_exp.status SWEEP`: how every run stands, by its folder, its heartbeat and SLURM's queue."""
