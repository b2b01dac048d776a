"""What a process tells of itself: logs, metrics, health. Composed in `perdure.cli`; knows nothing of the adapters."""
