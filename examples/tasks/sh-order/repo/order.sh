#!/bin/sh
# Reads "a b" pairs (a before b) and prints an order, one name per line.
tsort "$1" 2>/dev/null
exit 0
