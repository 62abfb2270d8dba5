"""A run's folder: its checkpoints, its metrics, and what is told of them to trackers."""
