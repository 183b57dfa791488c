"""The networks of DALLE2-pytorch, whose weights LAION published in 2022."""
