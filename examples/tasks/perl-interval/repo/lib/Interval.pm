package Interval;
use strict;
use warnings;

# Merges overlapping intervals [from, to]; returns them sorted.
sub merge {
    my @out;
    for my $next (sort { $a->[0] <=> $b->[0] } @_) {
        if (@out && $next->[0] <= $out[-1][1]) {
            $out[-1][1] = $next->[1];
        } else {
            push @out, [@$next];
        }
    }
    return @out;
}

1;
