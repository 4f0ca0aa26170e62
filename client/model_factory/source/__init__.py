"""Source that a trainer has said it trusts: bundles of an operator's files, what is trusted, and how it is run."""
