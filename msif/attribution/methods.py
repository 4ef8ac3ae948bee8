"""Names of the methods that score candidates; light, for the command line's help and early checks."""

METHODS = ("multi-stage", "single-stage", "gdp", "cosine")
