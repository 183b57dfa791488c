"""What is done to training pictures: blurs, degradations, masks."""
