"""Many copies over one pool of workers (`mpconv fanout`): the plan, the schedule, the pool, the journals.

Each copy is an ordinary one, of jobs/copy.
"""
