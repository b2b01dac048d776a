"""The commands, and the places where the processes are put together from their parts."""
