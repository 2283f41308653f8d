"""The coordinator's parts: its groups of workers, the scan of the source, the places of clusters, who hears of it."""
