"""The files of builds: readable folders, a guard for reads, and digests of read files."""
