/* Copies `in` to `out` (of `cap` bytes, NUL included); longer text is cut. Returns strlen(in). */
unsigned long text_copy(char *out, const char *in, unsigned long cap);
