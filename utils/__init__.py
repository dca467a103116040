"""Everything around the models: data, training, checkpoints, pictures, reports."""

from utils.startup import in_one_line, leave_out_unreadable

leave_out_unreadable()  # before any module imports tqdm, as PyTorch does
in_one_line()
