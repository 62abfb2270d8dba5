"""Where a federation runs: Flower's simulation on Ray in this process, or as Flower's ServerApp."""
