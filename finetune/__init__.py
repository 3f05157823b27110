"""Fine-tune text models beside the cheap baseline, and learn whether it was worth it."""

__version__ = "0.1.0"
