"""What a run does beside its rounds: pseudo-labels, the teacher, evaluation on the server."""
