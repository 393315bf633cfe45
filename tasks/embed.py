"""Writes a text file as the rows of a C string, for #include."""
import sys

with open(sys.argv[1], encoding="ascii") as text:
    for line in text:
        escaped = line.rstrip("\n").replace("\\", "\\\\").replace('"', '\\"').replace("?", "\\?")
        print(f'"{escaped}\\n"')
