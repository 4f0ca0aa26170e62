"""What operators see of a server: its calls and jobs as log lines, metrics and spans."""
