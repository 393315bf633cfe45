use strict;
use warnings;
use lib "lib";
use Test::More tests => 2;
use Interval;

is_deeply([Interval::merge([1, 2], [4, 5])], [[1, 2], [4, 5]], "apart");
is_deeply([Interval::merge([1, 3], [2, 6])], [[1, 6]], "overlapping");
