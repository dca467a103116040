"""Everything around the models: data, training, checkpoints, pictures, reports."""
