"""Federated HuBERT pretraining and distillation."""

__version__ = "0.1.0"
