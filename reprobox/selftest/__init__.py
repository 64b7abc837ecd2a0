"""The host half of the determinism self-test: carrying it out in a box, certificates of it, and comparing two of them."""
