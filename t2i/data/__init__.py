"""Where captioned pictures come from: shards, folders, and the procedural shapes world.

`Loader(DataConfig(source="photos/", size=64), seed=0, batch_size=32)` yields endless batches.
"""
