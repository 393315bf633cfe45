/*
 * Prints the canonical rows of a dataset as JSON lines: for tests written in Python.
 */
#include "tasks/dataset.h"

#include <stdio.h>

static gboolean on_row(Task *task, guint line, const GError *why, gpointer user_data)
{
    if (task == NULL) {
        g_printerr("row %u: %s\n", line, why->message);
        *(gboolean *)user_data = FALSE;
        return TRUE;
    }
    g_autofree char *text = json_print(task->json);
    puts(text);
    return TRUE;
}

int main(int argc, char **argv)
{
    g_autoptr(GError) error = NULL;
    gboolean ok = TRUE;
    if (argc != 2 || !dataset_read(argv[1], NULL, on_row, &ok, &error)) {
        g_printerr("task_rows: %s\n", error != NULL ? error->message : "usage: task_rows DATASET");
        return 2;
    }
    return ok ? 0 : 1;
}
