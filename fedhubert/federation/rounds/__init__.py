"""Rounds: whom to ask, what becomes of their replies, the step, and what is written down of it."""
