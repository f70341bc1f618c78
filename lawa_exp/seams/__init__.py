"""What a choice may do in a training: protocols. Nothing here imports torch at run time."""
