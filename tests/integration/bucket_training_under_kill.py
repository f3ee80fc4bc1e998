"""`training_under_kill` with stores in a bucket: a lease that is left runs out soon, checkpoints are copied at once."""

import sys

from training_under_kill import main

from m3po_dagster.storage import bucket_folder, scratch

if __name__ == "__main__":
    bucket_folder.LEASE_SECONDS, scratch.SECONDS_BETWEEN_LOOKS = 2.0, 0.05
    main(*sys.argv[1:])
