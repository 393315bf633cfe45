use strict;
use warnings;
use lib "lib";
use Test::More tests => 3;
use Balance;

is(Balance::ok("(a)[b]{c}") ? 1 : 0, 1, "pairs");
is(Balance::ok("({[]})") ? 1 : 0, 1, "nested");
is(Balance::ok("([)]") ? 1 : 0, 0, "crossed");
