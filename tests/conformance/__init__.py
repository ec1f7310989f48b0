"""What every implementation of one of our protocols has to do alike."""
