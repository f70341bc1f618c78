"""The published claims as data, rerun and judged."""
