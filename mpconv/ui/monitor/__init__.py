"""To watch jobs: a record of what happens in each, as metrics, page or report. Imported only when asked for."""
