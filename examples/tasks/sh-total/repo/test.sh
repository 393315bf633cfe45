#!/bin/sh
# TAP: one line per case.
cd "$(dirname "$0")" || exit 1
n=0
check() {
    n=$((n + 1))
    if [ "$2" = "$3" ]; then echo "ok $n $1"; else echo "not ok $n $1"; echo "# got $2"; fi
}
file=$(mktemp)
printf 'item,price\nx,2\ny,3\n' > "$file"
check "adds a column" "$(./total.sh "$file")" "5"
printf 'item,price\nx,7\n' > "$file"
check "one row" "$(./total.sh "$file")" "7"
rm -f "$file"
echo "1..$n"
