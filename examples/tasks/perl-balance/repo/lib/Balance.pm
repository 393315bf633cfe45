package Balance;
use strict;
use warnings;

my %close = (")" => "(", "]" => "[", "}" => "{");

# True when every bracket of the text is closed in order.
sub ok {
    my ($text) = @_;
    my @open;
    for my $char (split //, $text) {
        if ($char =~ /[(\[{]/) {
            push @open, $char;
        } elsif (exists $close{$char}) {
            return 0 if pop(@open) ne $close{$char};
        }
    }
    return 1;
}

1;
