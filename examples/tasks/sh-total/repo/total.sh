#!/bin/sh
# Adds up the second column of a CSV file, its heading left out.
awk -F, 'NR > 1 { sum += $2 } END { print sum }' "$1"
