"""The page on which a hole is painted and repaired before one's eyes (app.py)."""
