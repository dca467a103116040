"""Score generated or repaired images: `inputs` -> `extraction` -> `statistics` -> `scoring`."""
