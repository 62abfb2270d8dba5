"""A client's data, settings, state and statistics: what training, baselines and planning need of a
site, without a federation."""

Metrics = dict[str, int | float]
"""What is said of a partition: numbers by name, and nothing else."""
