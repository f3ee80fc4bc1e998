"""M3PO (arXiv 2508.12458) as a Dagster asset graph."""
