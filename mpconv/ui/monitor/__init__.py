"""To watch jobs: a record of what happens in each, as metrics, as a page, as a report. Imported only where that is asked."""
