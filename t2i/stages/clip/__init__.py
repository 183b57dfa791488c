"""CLIP: a joint space of pictures and sentences (Radford et al. 2021, arXiv 2103.00020).

In: pictures (B, 3, H, W) in [-1, 1] of any size, and sentences. Out: unit vectors (B, D) for both, and the text
tower's token states (B, L, W) for stages that read the whole sentence.

    t2i train configs/shapes/clip.yaml                       train it
    ClipEncoder.encode_image(pictures), .encode_text(words)  use it (`t2i.stages.clip.model`)
    architecture: ViT-L-14 in a config                       any architecture that open_clip knows, by name
"""
