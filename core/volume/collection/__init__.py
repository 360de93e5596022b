"""What brings the past to an end in images that nobody has open: space, strays, old keys and writers."""
