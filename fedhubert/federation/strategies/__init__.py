"""Strategies, one file each: what clients do, how their updates combine, and the server's step on
the mean."""
