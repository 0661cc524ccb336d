"""Pre-training: windows of genomes, objective, optimizer, loop, snapshots, processes that share a run."""
