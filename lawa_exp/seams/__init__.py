"""What a choice may do in a training: protocols. `objective` and `layers` alone import torch at run time."""
