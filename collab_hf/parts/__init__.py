"""What surgery can make smaller, one folder each."""
