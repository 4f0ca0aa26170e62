"""The program of a forward as plain data: steps, sizes, call signatures, and their JSON form."""
