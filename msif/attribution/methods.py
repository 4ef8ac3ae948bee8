"""Names that choose how candidates are scored; light, for the command line's help and early checks."""

METHODS = ("multi-stage", "single-stage", "gdp", "cosine")

# how a stage's inverse is applied; the last ones solve on the stage's own data
IHVPS = ("ekfac", "kfac", "diagonal", "identity", "cg", "ekfac-cg", "lissa", "ekfac-lissa", "arnoldi")
SOLVERS = IHVPS[4:]
