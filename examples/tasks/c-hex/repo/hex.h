/* The value of a hex digit, or -1. */
int hex_value(char c);
