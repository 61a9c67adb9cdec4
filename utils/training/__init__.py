"""Training: losses, optimiser, checkpoints, the run folder and its log."""
