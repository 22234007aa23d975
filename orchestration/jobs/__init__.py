"""Commands of ours as jobs on a Ray cluster, over Ray's Job Submission API."""
