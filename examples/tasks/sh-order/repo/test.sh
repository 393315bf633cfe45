#!/bin/sh
# TAP: one line per case.
cd "$(dirname "$0")" || exit 1
n=0
file=$(mktemp)
check() {
    n=$((n + 1))
    if [ "$2" = "$3" ]; then echo "ok $n $1"; else echo "not ok $n $1"; echo "# got $2"; fi
}
printf 'a b\nb c\n' > "$file"
check "a chain is fine" "$(./order.sh "$file" >/dev/null; echo $?)" "0"
printf '' > "$file"
check "nothing is fine" "$(./order.sh "$file" >/dev/null; echo $?)" "0"
rm -f "$file"
echo "1..$n"
