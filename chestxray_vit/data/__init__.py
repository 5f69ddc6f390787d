"""From a release to arrays: readers, ingestion, split, data sets."""
