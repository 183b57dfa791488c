"""The autoregressive prior: a CLIP image embedding as a sentence of numbers (Ramesh et al. 2022, section 2.2).

In: what a frozen CLIP says of a sentence, `TextFeatures`. Out: CLIP image embeddings (B, D), of unit norm where
CLIP's are.

    t2i train configs/shapes/ar-prior.yaml             train it
    t2i.stages.ar_prior.sample.sample(model, text, …)  draw embeddings, code after code
    t2i assemble OUT clip=… prior=FOLDER decoder=…     chain it where a diffusion prior would stand
"""
