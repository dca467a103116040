"""Score generated or repaired images: `inputs` -> `extraction` -> `statistics` -> `scoring`."""

from fid.startup import in_one_line, leave_out_unreadable

leave_out_unreadable()  # before any module imports tqdm, as PyTorch does
in_one_line()
