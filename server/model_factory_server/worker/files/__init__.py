"""Files that builds read: which files a build may read, and which it has read."""
