"""harmonized -> embedded: temporal, spatial and frequency embeddings, each computed once."""
