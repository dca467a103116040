"""The networks, the masks and the decoding; pure PyTorch, no files but weights."""
