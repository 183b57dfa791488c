"""Network parts: tensors in, tensors out; no schedules, no files."""
