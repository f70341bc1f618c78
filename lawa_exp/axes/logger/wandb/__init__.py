"""The rows of a run, sent to Weights & Biases during training or later; the JSONL files stay the truth."""
