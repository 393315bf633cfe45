/*
 * A stand-in for the sandbox's probe until sandbox/ has it. Deleted on merge.
 */
#include "sandbox/box.h"

char *box_probe_json(void)
{
    return g_strdup("{\"checks\":[]}");
}
