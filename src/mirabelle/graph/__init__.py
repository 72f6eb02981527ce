"""Which dimensions of which tensors must be cut together, and the cut: traced, tied, grouped, sliced."""
