"""From published weights to stage folders."""
