"""The border to disks and networks: files, weights, pictures, provenance, downloads."""
