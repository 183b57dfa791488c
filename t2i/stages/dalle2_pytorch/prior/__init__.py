"""The diffusion prior of DALLE2-pytorch, whose weights LAION published in 2022: another transformer for the same task.

In: what a frozen CLIP says of a sentence, `TextFeatures`. Out: CLIP image embeddings (B, D), near unit norm.

    t2i convert latest.pth --out FOLDER --set era=C     read published weights (`.convert`)
    sample(prior, text, …)                              draw embeddings, best of two by default (`.sample`)

Its attention changed three times, and keys tell that only in part, so a checkpoint must say from when it is: `era` in
the config.
"""
