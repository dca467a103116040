"""Optuna's search for the learning rate and any other number of the training."""
