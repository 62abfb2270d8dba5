"""Secure aggregation: sums of which the server sees only the total, with the bits of plain ones
(README.md here: the protocol, and what each check is for)."""
