"""Judging an encoder beside its baselines, and writing down what came out."""
