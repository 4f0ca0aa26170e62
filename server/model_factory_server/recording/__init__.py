"""From a module's forward to programs: recorded on symbols, proven by replay."""
