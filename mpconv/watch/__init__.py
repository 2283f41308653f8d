"""To watch jobs: a record of what happens in each, as metrics, as a page, as a report. Nobody imports it unwatched."""
