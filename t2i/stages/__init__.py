"""One folder per trainable stage: model, task, sample, convert."""
