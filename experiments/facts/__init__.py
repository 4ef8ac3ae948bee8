"""Facts with the sentences that state them, from the files of LAMA and T-REx, and pairs of models made of them."""
