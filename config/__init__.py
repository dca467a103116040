"""What a run may be told: the typed settings, the presets and how they are read."""
