"""Which documents are worth scoring for a query.

`selection.parse_candidates("knn:500+bm25:500")` reads what the command line says, `build.build_selector` makes
the selector: sentence-embedding neighbours (`embedding`), word statistics (`bm25`), their union, or all documents.
"""
