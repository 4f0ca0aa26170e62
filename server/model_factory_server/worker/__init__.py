"""The worker process: one build, description or recording, in a sandbox."""
