"""The loop: keyed queue, worker, executor, and the ports that they drive."""
