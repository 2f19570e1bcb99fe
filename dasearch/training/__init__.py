"""Losses, metrics, the training loop, evaluation, checkpoints and trained-model folders."""
