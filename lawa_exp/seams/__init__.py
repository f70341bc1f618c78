"""What a choice may do in a training: protocols. Settings import of it what needs no torch."""
