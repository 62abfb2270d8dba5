"""Differential privacy on the server: the mechanism, its accounting, the secret that noise comes
from."""
