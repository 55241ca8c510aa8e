"""One instance for several processes of a machine: the owner process, and the processes that use it."""
