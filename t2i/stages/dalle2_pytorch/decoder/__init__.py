"""The decoder of DALLE2-pytorch, whose weights LAION published in 2022: another U-Net for the same task.

In: x_t (B, 3, H, W) in [-1, 1] plus noise, t (B,), a CLIP image embedding (B, D), and CLIP's states of a sentence.
Out: eps, and with a learned variance as many channels again (B, 6, H, W).

    t2i convert latest.pth --out FOLDER --set era=C              read published weights (`.convert`)
    sample(decoder, condition, null, …)                          draw 64 pixel pictures (`.sample`)

Its attention changed while its key names stayed, so a checkpoint must say from when it is: `era` in the config.
"""
