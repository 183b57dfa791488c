"""What every pipeline shares; the stories themselves are in `pipelines/`."""
