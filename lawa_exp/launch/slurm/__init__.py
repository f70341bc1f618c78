"""Sweeps on a SLURM cluster: `submit.py` writes down what to train and queues it, `worker.py` trains it there."""
