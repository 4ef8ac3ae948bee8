"""Documents, chats, prompt/completion pairs and labelled texts to batches of tokens with supervision masks.

A corpus comes from `corpus.load_corpus`; `format.choose_format` says which of its fields are read and
`format.check_rows` that they are filled; `batching.TokenBatches` yields its batches. `queries.load_queries` and
`queries.encode_queries` do the same for what is to be explained. Heavy packages are imported on use.
"""
