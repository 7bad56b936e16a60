"""What the benchmarks of engines share: models of random weights, and pieces that end in time."""
