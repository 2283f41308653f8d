"""Where workers come from: processes of this host, agents on other hosts, a Dask cluster.

It starts, reaps and kills workers. It does not know what they copy.
"""
