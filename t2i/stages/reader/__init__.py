"""A reader of scenes: which things a picture of the shapes world shows, and where. It judges what others draw.

In: pictures (B, 3, H, W) in [-1, 1], best between 64 and 256 pixels. Out: for each, a list of `Detection`s with shape,
colour, box and whether the thing stands on another. It shares nothing with CLIP or with any stage that draws.

    t2i train configs/shapes/reader.yaml       train it, on renders whose scenes are known exactly
    Reader.read(pictures)                      use it (`t2i.stages.reader.model`)
    t2i eval compose                           judge a pipeline with it
"""
