"""What all of the package stands on; imports nothing else of it."""
