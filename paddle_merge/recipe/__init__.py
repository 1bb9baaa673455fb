"""What was asked: flags, fields, YAML and Python objects become one Recipe."""
