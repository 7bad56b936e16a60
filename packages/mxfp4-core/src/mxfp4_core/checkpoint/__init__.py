"""Checkpoints of safetensors files: reading with checks, streaming out, and the manifest with hashes."""
