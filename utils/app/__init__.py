"""The web demo: paint a hole and watch it being repaired (app.py)."""
