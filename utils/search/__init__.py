"""Optuna search for the learning rate and other numeric training settings."""
