"""What the Hopper benchmarks share: timing by graph replays, and figures of peers from another run."""
