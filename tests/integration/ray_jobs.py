"""Prints the jobs of a Ray cluster as JSON, from inside its network: `python ray_jobs.py ADDRESS`."""

import json
import sys

from ray.job_submission import JobSubmissionClient

jobs = sorted(JobSubmissionClient(sys.argv[1]).list_jobs(), key=lambda job: job.start_time)
print(
    json.dumps(
        [
            {"step": job.metadata["dagster/op"], "node": job.driver_node_id, "status": str(job.status.value)}
            for job in jobs
            if "dagster/op" in job.metadata
        ]
    )
)
