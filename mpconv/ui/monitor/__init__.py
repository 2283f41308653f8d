"""A record of what happens in each job, shown as metrics, page or report. Imported only when monitoring is on."""
