"""Names that choose how candidates are scored; light, for the command line's help and early checks."""

from msif.errors import MsifError

# ⟨v, ∇L(z)⟩, with inverses of the stages in v, or without
DAMPED = ("multi-stage", "single-stage")
STAGED = (*DAMPED, "source")
INFLUENCES = (*STAGED, "gdp", "cosine")
# by projected gradients and their own curvature, which is taken from index data
PROJECTED = ("trak", "logra")
# by features of documents that an index holds
INDEXED = ("trackstar",)
# how the best documents of an index are found
SEARCHES = ("exact", "faiss")
METHODS = (*INFLUENCES, "cka", *PROJECTED, *INDEXED, "representation", "random")

# how a stage's inverse is applied; the last ones solve on the stage's own data
IHVPS = ("ekfac", "kfac", "diagonal", "identity", "cg", "ekfac-cg", "lissa", "ekfac-lissa", "arnoldi")
SOLVERS = IHVPS[4:]

# options that not every method reads
READ_BY = {
    "damping": (*DAMPED, *PROJECTED),
    "damping_scale": (*DAMPED, *PROJECTED),
    "alpha": ("multi-stage",),
    "adapter_hop": ("multi-stage",),
    "learning_rate_sum": STAGED,
    "checkpoints": ("source",),
    "ihvp": DAMPED,
    "ihvp_iterations": DAMPED,
    "ihvp_tolerance": DAMPED,
    "ihvp_examples": (*DAMPED, *PROJECTED),
    "lissa_scale": DAMPED,
    "arnoldi_top": DAMPED,
    "halves": DAMPED,
    "query_rank": INFLUENCES,
    "normalize": (*INFLUENCES, *INDEXED),
    "r": (*INDEXED, "multi-stage"),
    "projection_size": PROJECTED,
    "projection_seed": PROJECTED,
    "projection_dim": ("trak",),
    "trak_weighting": ("trak",),
    "logra_labels": ("logra",),
    "cka_rows": ("cka",),
    "random_seed": ("random",),
}


def usual_candidates(method: str, index: object) -> str:
    """Where nothing is said: those that search finds, or all where their gradients are in an index."""
    return "all" if index is not None and method in READ_BY["r"] else "knn:1000"


def check_index(method: str, preselects: bool, index: object, search: str = "exact") -> None:
    """Whether an index is there for what reads it, and read where it is given.

    Args:
        preselects: whether candidates are "index:N".
        search: how these are found.

    Raises:
        MsifError: it is not.
    """
    if search not in SEARCHES:
        raise MsifError(f"search is '{search}': choose one of {', '.join(SEARCHES)}.")
    if search != "exact" and not preselects:
        raise MsifError(f"--search {search} finds candidates of an index: give --candidates index:N, or leave it out.")
    for what, needs in ((f"--method {method}", method in INDEXED), ("--candidates index", preselects)):
        if needs and not index:
            raise MsifError(f"{what} needs --index: make one with python -m msif.build_index.")
    if index and not preselects and method not in READ_BY["r"]:
        raise MsifError(f"--method {method} reads an index only for --candidates index:N: give it, or no --index.")


# settings of how a run is carried out and where its results go: other values of these make no other run
NOT_RESULTS = ("output", "batch_tokens", "memory", "fsdp")
