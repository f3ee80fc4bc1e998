"""What a study over a dataset will take, by arithmetic whose every assumption is named."""
