"""Networks, masking and decoding in pure PyTorch, without file I/O."""
