"""mergekit's recipes in YAML: read.py reads them, write.py writes them."""
