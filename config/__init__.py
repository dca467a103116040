"""The typed settings, the presets and how they are read."""
