/*
 * The list of row formats, generated from tasks/meson.build.
 */
#include "tasks/format.h"

#define FORMAT(name) extern const TaskFormat task_format_##name;
#include "formats.inc"
#undef FORMAT

#define FORMAT(name) &task_format_##name,
const TaskFormat *const task_formats[] = {
#include "formats.inc"
    NULL,
};
#undef FORMAT
