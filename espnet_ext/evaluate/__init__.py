"""Trained models evaluated: what is measured and decoded of them, and what is kept."""
