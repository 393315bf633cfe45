#!/bin/sh
# Fetches the Debian source of one project and builds what its tests need:  sources.sh DIR git|sqlite3|redis
# Nothing of the system is changed: apt's lists are kept in DIR. The result is DIR/NAME; DIR/NAME.log says
# what went wrong.
set -eu
mkdir -p "$1"
dir=$(cd "$1" && pwd) name=$2
cd "$dir"
exec >"$name.log" 2>&1

apt=$dir/apt
mkdir -p "$apt/lists/partial" "$apt/parts"
for list in /etc/apt/sources.list /etc/apt/sources.list.d/debian.sources; do
    [ -f "$list" ] && sed 's/^Types: .*/Types: deb-src/; s/^deb /deb-src /' "$list" >"$apt/parts/${list##*/}"
done
set -- -q -o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$apt/parts" -o "Dir::State::lists=$apt/lists"
apt-get "$@" update
rm -rf "fetch-$name" && mkdir "fetch-$name" && cd "fetch-$name"
apt-get "$@" source "$name"
cd */ # the one directory that it unpacks

case $name in
git)
    make -j2 CFLAGS=-O1 NO_CURL=1 NO_EXPAT=1 NO_GETTEXT=1 NO_TCLTK=1 all
    sed -i "s,$PWD,@TREE@,g" bin-wrappers/* # whoever runs them puts their own place in
    ;;
sqlite3)
    mkdir bld && cd bld
    ../configure --with-tcl=/usr/lib/tcl8.6 CFLAGS=-O1
    make -j2 testfixture
    cd ..
    ;;
redis)
    make -j2 MALLOC=libc USE_SYSTEMD=no
    ;;
esac
rm -rf "$dir/$name"
mv "$PWD" "$dir/$name"
rm -rf "$dir/fetch-$name"
