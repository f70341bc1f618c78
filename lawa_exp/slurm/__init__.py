"""Sweeps on a SLURM cluster: `submit.py` writes down what is to be trained and queues it, `worker.py` trains it there."""
