"""Files that lie in a bucket and are read as if they lay here: datasets, images, benchmarks."""
