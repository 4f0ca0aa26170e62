"""Programs run: interpreter, and the two modules whose forward is a program."""
