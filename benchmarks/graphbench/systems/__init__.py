"""The processes behind the contestants: each system can be started, asked for URLs and processes, and ended."""
