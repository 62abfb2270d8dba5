"""Who takes part: connected nodes and their keys, what all must have in common, who trains in a
round."""
