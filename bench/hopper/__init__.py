"""What the Hopper benchmarks share: the layers, the peers, timing by graph replays, and tables."""
