"""Lineage from the store's manifests alone: what an adapter came from, what a pair or an image went into.

No Dagster here. `manifests` reads; `tree` follows inputs back to the dataset; `naming` says which adapter a name means
and `study` what a study file asks for; `profile` sums an adapter up; `pairs` lists what trained it; `search` finds a
pair, a prompt or an image, and `training` what adapters made of it; `diff` and `pair_diff` compare two adapters;
`render` writes for a terminal.
"""
