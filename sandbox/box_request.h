/*
 * Encoding a command for its init.
 */
#pragma once

#include "sandbox/box_private.h"

gboolean box_request_encode(const Box *box, const BoxCommand *command, GByteArray *bytes,
                            GError **error);
