"""Formulas: tensors in, tensors out; no modules, files, devices or logs."""
