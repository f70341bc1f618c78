"""The rows of a run, sent to Weights & Biases beside training or later; the JSONL files stay the truth."""
