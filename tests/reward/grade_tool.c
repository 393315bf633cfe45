/*
 * Grades what it is asked on standard input, for differential.py: one JSON request a line,
 * {"mode", "row", "log": base64}, one JSON answer a line.
 */
#include "reward/parse_cli.h"
#include "reward/pyjson.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static json_t *answer(const char *line, GError **error)
{
    g_autoptr(json_t) request = json_parse(line, strlen(line), error);
    if (request == NULL)
        return NULL;
    const char *log = json_want_str(request, "log", error);
    const char *mode_name = log == NULL ? NULL : json_want_str(request, "mode", error);
    if (mode_name == NULL)
        return NULL;
    GradeMode mode;
    g_assert_true(grade_mode_from_str(mode_name, &mode));
    gsize len;
    g_autofree guchar *bytes = g_base64_decode(log, &len);
    return parse_cli_run(json_object_get(request, "row"), bytes, len, mode, error);
}

int main(void)
{
    char *line = NULL;
    size_t cap = 0;
    while (getline(&line, &cap, stdin) > 0) {
        g_autoptr(GError) error = NULL;
        g_autoptr(json_t) result = answer(line, &error);
        if (result == NULL)
            result = json_pack("{s:s}", "failed", error->message);
        g_autofree char *text = pyjson_dump(result, 0);
        puts(text);
        fflush(stdout);
    }
    free(line);
    return 0;
}
