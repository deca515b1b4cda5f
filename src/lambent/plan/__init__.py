"""The planner: what a workload will do to an account, from the scheduler that really runs, before it is deployed."""
