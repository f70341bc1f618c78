"""Files that survive: the safetensors format, and folders that are committed whole or not at all."""
