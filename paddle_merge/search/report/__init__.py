"""Show what a search found: one HTML page, and pictures."""
